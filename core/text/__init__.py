"""Text on one side, token ids on the other: tokenizers, chat templates, incremental detokenizing."""

from __future__ import annotations

from typing import Any

from core.errors import UserError
from core.interfaces.model import ModelFolder
from core.text.files import read_json

_SAMPLING_KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def generation_defaults(folder: ModelFolder) -> dict[str, Any]:
    """The sampling defaults a checkpoint states in generation_config.json.

    A folder that has no such file gets its family's, and what is no folder the ones it was found with (the demo's). A file
    that states none gives {}.

    :raises UserError: for a file that cannot be read or states something that is no number.
    """
    if folder.path is None or not folder.path.is_dir():
        return dict(folder.defaults)
    path = folder.path / "generation_config.json"
    if not path.is_file():
        return dict(folder.family.sampling)
    stated = read_json(path)
    defaults = {key: stated[key] for key in _SAMPLING_KEYS if stated.get(key) is not None}
    for key, value in defaults.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError.of(f"{key} is {value!r}, not a number", str(path), "correct or remove that line of the file")
    return defaults
