"""What the text side reads from a model's folder, and how it refuses what it cannot read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.interfaces.model import ModelFolder


def read_json(path: Path) -> dict[str, Any]:
    """The object a JSON file holds; {} when there is no such file. :raises UserError: when it holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError.of(f"{path.name} cannot be read: {error}", str(path), "fetch the checkpoint's file again") from error
    if not isinstance(found, dict):
        raise UserError.of(f"{path.name} holds no JSON object", str(path), "fetch the checkpoint's file again")
    return found


def gguf_file(folder: ModelFolder) -> Path | None:
    """The GGUF file a folder is or has; of several the first by name, which for a split model is the one with metadata."""
    path = folder.path
    if path is None:
        return None
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    return min(path.glob("*.gguf"), default=None)
