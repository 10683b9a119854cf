"""The files of a model's text side, for a folder that is written anew: tokenizer, chat templates, generation defaults."""

from __future__ import annotations

import json
from pathlib import Path

from core.interfaces.model import ModelFolder
from core.text.chat_template import family_template
from core.text.files import gguf_file
from core.text.gguf_tokenizer import gguf_files
from core.text.pieces import ByteTokenizer

COPIED = ("*.json", "*.model", "*.jinja", "*.txt", "additional_chat_templates/*.jinja", "LICENSE*", "NOTICE*")
OF_WEIGHTS = ("config.json", "*.safetensors.index.json")


def text_files(folder: ModelFolder) -> dict[str, bytes]:
    """Content by name. What is no folder says in generation_config.json how it is sampled, as it would do by itself.

    :raises UserError: when a GGUF's tokenizer is of a kind that is not known here.
    """
    file = gguf_file(folder)
    if folder.path is not None and file is None:
        return {str(path.relative_to(folder.path)): path.read_bytes() for path in _copied(folder.path)}
    defaults = {"generation_config.json": json.dumps(dict(folder.defaults)).encode()}
    if file is not None:
        return defaults | gguf_files(file)
    made_up = {
        "tokenizer_config.json": json.dumps({"tokenizer_class": ByteTokenizer.CLASS}).encode(),
        "chat_template.jinja": (family_template(folder) or "").encode(),
    }
    return defaults | made_up


def _copied(folder: Path) -> list[Path]:
    found = {path for pattern in COPIED for path in folder.glob(pattern) if path.is_file()}
    return sorted(path for path in found if not any(path.match(pattern) for pattern in OF_WEIGHTS))
