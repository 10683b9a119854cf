"""Which tokenizer a checkpoint has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers

from core.errors import UserError
from core.interfaces.frontend import Tokenizer
from core.interfaces.model import ModelFolder
from core.text.files import gguf_file, read_json
from core.text.gguf_tokenizer import from_gguf
from core.text.json_tokenizer import JsonTokenizer
from core.text.pieces import ByteTokenizer
from core.text.sentencepiece_tokenizer import SentencePieceTokenizer


def load_tokenizer(folder: ModelFolder, config: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a checkpoint.

    :param config: the checkpoint's config in config.json's terms.
    :raises UserError: when there is none, or none that can be read.
    """
    if folder.path is None or _is_made_of_bytes(folder.path):
        others = _ids(config.get("pad_token_id"))
        bos = next(iter(_ids(config.get("bos_token_id"))), None)
        return ByteTokenizer(int(config["vocab_size"]), bos=bos, eos=_ids(config.get("eos_token_id")), others=others)
    if folder.path.is_dir():
        if (folder.path / "tokenizer.json").is_file():
            return _from_json(folder, config)
        if (folder.path / "tokenizer.model").is_file():
            return _from_sentencepiece(folder, config)
    if (file := gguf_file(folder)) is not None:
        return from_gguf(file)
    raise UserError.of(
        f"model {folder.name!r} has no tokenizer: neither tokenizer.json nor tokenizer.model lies in its folder",
        str(folder.path),
        "copy the checkpoint's tokenizer files into that folder",
    )


def _is_made_of_bytes(path: Path) -> bool:
    return path.is_dir() and read_json(path / "tokenizer_config.json").get("tokenizer_class") == ByteTokenizer.CLASS


def _from_json(folder: ModelFolder, config: Mapping[str, Any]) -> JsonTokenizer:
    assert folder.path is not None
    path = folder.path / "tokenizer.json"
    stated = read_json(folder.path / "tokenizer_config.json")
    try:
        library = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise UserError.of(f"tokenizer.json cannot be read: {error}", str(path), "fetch the checkpoint's file again") from error
    return JsonTokenizer(
        library,
        named=named_tokens(stated),
        eos_token_ids=_eos_ids(folder, config),
        add_bos=stated.get("add_bos_token"),
        add_eos=stated.get("add_eos_token"),
        where=str(path),
    )


def _from_sentencepiece(folder: ModelFolder, config: Mapping[str, Any]) -> SentencePieceTokenizer:
    assert folder.path is not None
    path = folder.path / "tokenizer.model"
    stated = read_json(folder.path / "tokenizer_config.json")
    named = named_tokens(stated)
    special = {*named.values(), *(_content(token) for token in stated.get("additional_special_tokens") or ())}
    added: dict[str, int] = dict(read_json(folder.path / "added_tokens.json"))
    for token_id, token in (stated.get("added_tokens_decoder") or {}).items():
        added[_content(token)] = int(token_id)
        if isinstance(token, dict) and token.get("special"):
            special.add(token["content"])
    try:
        model = path.read_bytes()
        pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    except (OSError, RuntimeError) as error:
        raise UserError.of(
            f"tokenizer.model cannot be read: {error}", str(path), "fetch the checkpoint's file again"
        ) from error
    for content in special:  # most of them are pieces of the model itself
        token_id = pieces.piece_to_id(content)
        if pieces.id_to_piece(token_id) == content:
            added.setdefault(content, token_id)
    is_llama = str(stated.get("tokenizer_class", "")).startswith(("Llama", "CodeLlama"))
    return SentencePieceTokenizer(
        model,
        named=named,
        added=added,
        special=special,
        eos_token_ids=_eos_ids(folder, config),
        add_bos=bool(stated.get("add_bos_token", is_llama)),
        add_eos=bool(stated.get("add_eos_token", False)),
        each_part_is_a_text=not is_llama or stated.get("legacy", True) is not False,
    )


def named_tokens(stated: Mapping[str, Any]) -> dict[str, str]:
    """The control tokens of a tokenizer_config.json by role."""
    return {
        key: _content(value)
        for key, value in stated.items()
        if key.endswith("_token") and (isinstance(value, str) or (isinstance(value, dict) and "content" in value))
    }


def _content(token: Any) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)


def _ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(int(token) for token in value) if isinstance(value, (list, tuple)) else (int(value),)


def _eos_ids(folder: ModelFolder, config: Mapping[str, Any]) -> tuple[int, ...]:
    assert folder.path is not None
    stated = read_json(folder.path / "generation_config.json")
    return tuple(dict.fromkeys((*_ids(config.get("eos_token_id")), *_ids(stated.get("eos_token_id")))))
