"""The tokenizer inside a GGUF file, rebuilt from its metadata."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from core.errors import UserError
from core.models.gguf_file import GgufFile
from core.text.json_tokenizer import JsonTokenizer
from core.text.pieces import PieceTokenizer
from core.text.sentencepiece_tokenizer import SentencePieceTokenizer

# How GGUF numbers the kinds of token; SentencePiece numbers them alike.
_CONTROL, _USER_DEFINED = 3, 4

# Contractions, words, runs of up to three digits, punctuation, line ends, other space.
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def from_gguf(path: Path) -> PieceTokenizer:
    """:raises UserError: when the file's tokenizer is of a kind that is not known here."""
    metadata = GgufFile(path).metadata
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        return _byte_level(metadata, path)
    if kind == "llama":
        return _sentencepiece(metadata)
    raise UserError.of(
        f"{path.name} has a tokenizer of kind {kind!r}; known are gpt2 (byte-level BPE) and llama (SentencePiece)",
        str(path),
        "use the model's safetensors checkpoint instead",
    )


def gguf_files(path: Path) -> dict[str, bytes]:
    """The same tokenizer, and the chat template, as the files a folder of safetensors has beside its weights.

    :raises UserError: as ``from_gguf`` does.
    """
    metadata = GgufFile(path).metadata
    tokenizer = from_gguf(path)
    stated: dict[str, Any] = dict(_named(metadata))
    files: dict[str, bytes] = {}
    if isinstance(tokenizer, JsonTokenizer):
        files["tokenizer.json"] = tokenizer.as_json().encode()
        added = {"add_bos_token": metadata.get("tokenizer.ggml.pre") == "llama-bpe", "add_eos_token": False}
    else:
        files["tokenizer.model"] = _model_proto(metadata)
        stated.pop("unk_token", None)  # it stands for what no token is, and is never read out of a text
        stated["added_tokens_decoder"] = {
            str(token_id): {"content": token, "special": True} for token, token_id in _controls(metadata).items()
        }
        added = {"add_bos_token": True, "add_eos_token": False}
    stated |= {key: metadata.get(f"tokenizer.ggml.{key}", usual) for key, usual in added.items()}
    files["tokenizer_config.json"] = json.dumps(stated, ensure_ascii=False, indent=1).encode()
    if metadata.get("tokenizer.chat_template"):
        files["chat_template.jinja"] = metadata["tokenizer.chat_template"].encode()
    return files


def _named(metadata: Mapping[str, Any]) -> dict[str, str]:
    tokens = metadata["tokenizer.ggml.tokens"]
    roles = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {role: metadata.get(f"tokenizer.ggml.{key}_token_id") for role, key in roles.items()}
    return {role: tokens[token_id] for role, token_id in ids.items() if token_id is not None and token_id < len(tokens)}


def _eos_ids(metadata: Mapping[str, Any]) -> list[int]:
    """End of text and, where the file tells it apart, end of turn."""
    ids = (metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot"))
    return [token_id for token_id in dict.fromkeys(ids) if token_id is not None]


def _byte_level(metadata: Mapping[str, Any], path: Path) -> JsonTokenizer:
    kind = metadata.get("tokenizer.ggml.pre", "default")
    splits: dict[str, list[Any]] = {
        "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
        "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
        "default": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
        "llama-bpe": [
            pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ],
    }
    if kind not in splits:
        raise UserError.of(
            f"{path.name} splits text by the rule {kind!r}; known are {', '.join(sorted(splits))}",
            str(path),
            "use the model's safetensors checkpoint instead",
        )
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    kinds: list[int] = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    library = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=kind == "llama-bpe"))
    library.pre_tokenizer = pre_tokenizers.Sequence(splits[kind])
    library.decoder = decoders.ByteLevel()
    for number, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        contents = [token for token, its in zip(tokens, kinds, strict=True) if its == number]
        added = [AddedToken(content, special=special, normalized=False) for content in contents]
        _ = library.add_special_tokens(added) if special else library.add_tokens(added)
    return JsonTokenizer(
        library,
        named=_named(metadata),
        eos_token_ids=_eos_ids(metadata),
        add_bos=metadata.get("tokenizer.ggml.add_bos_token", kind == "llama-bpe"),
        add_eos=metadata.get("tokenizer.ggml.add_eos_token", False),
        where=str(path),
    )


def _controls(metadata: Mapping[str, Any]) -> dict[str, int]:
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    kinds: list[int] = metadata["tokenizer.ggml.token_type"]
    return {token: token_id for token_id, token in enumerate(tokens) if kinds[token_id] == _CONTROL}


def _sentencepiece(metadata: Mapping[str, Any]) -> SentencePieceTokenizer:
    controls = _controls(metadata)
    return SentencePieceTokenizer(
        _model_proto(metadata),
        named=_named(metadata),
        added=controls,
        special=controls,
        eos_token_ids=_eos_ids(metadata),
        add_bos=metadata.get("tokenizer.ggml.add_bos_token", True),
        add_eos=metadata.get("tokenizer.ggml.add_eos_token", False),
    )


def _model_proto(metadata: Mapping[str, Any]) -> bytes:
    """The metadata as the protocol-buffer message that SentencePiece stores in a tokenizer.model."""
    rows = (metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores", "token_type"))
    pieces = [
        _bytes(1, _bytes(1, token.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, kind))
        for token, score, kind in zip(*rows, strict=True)
    ]
    ids = {40: "unknown", 41: "bos", 42: "eos", 43: "padding"}
    trainer = _number(3, 2) + _number(35, 1)  # byte-pair encoding, with byte fallback
    for field, role in ids.items():
        trainer += _number(field, metadata.get(f"tokenizer.ggml.{role}_token_id", -1))
    normalizer = (
        _bytes(1, b"identity")
        + _number(3, int(metadata.get("tokenizer.ggml.add_space_prefix", True)))
        + _number(4, int(metadata.get("tokenizer.ggml.remove_extra_whitespaces", False)))
        + _number(5, 1)
    )
    return b"".join(pieces) + _bytes(2, trainer) + _bytes(3, normalizer)


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value
