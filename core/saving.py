"""Saving a model packed: from a command line to a folder that any server loads without packing anything again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.compose.build import create_quantizer, fetched, stored_weights
from core.compose.packed import compose_saving, packing_of
from core.compose.plan import Plan
from core.errors import ExitCode, Problem, UserError
from core.models.packed import KEY, Packing, tensors
from core.models.safetensors_writer import Shards
from core.plugin_manager import PluginManager
from core.text.saving import text_files


@dataclass(frozen=True)
class Saved:
    folder: Path
    packing: Packing
    nbytes: int  # of tensors


def save_packed(argv: Sequence[str], folder: Path, most: int) -> Saved:
    """Pack a model while it streams in, and write it: config.json, safetensors files, and what its text side needs.

    :param argv: the composition's flags: which model, which quantizer.
    :param folder: does not exist yet, or is empty. Until everything is written it stays so.
    :param most: bytes of tensors in one file.
    :raises UserError: when the model, the quantizer or the folder will not do.
    """
    check_empty(folder)
    plan = fetched(compose_saving(argv))
    manager = PluginManager.load_only(plan.plugins)
    quantizer = create_quantizer(plan, manager)
    assert quantizer is not None
    packing = packing_of(plan, quantizer, manager)
    with written_whole(folder) as partial:
        for name, content in text_files(plan.model).items():
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_bytes(content)
        shards = Shards(partial, most)
        try:
            with stored_weights(plan, manager) as weights:
                for name, tensor in tensors(weights, quantizer, numpy_dtype(dense_format(plan))):
                    shards.add(name, tensor)
            shards.finish()
        finally:
            shards.close()
        (partial / "config.json").write_text(json.dumps(saved_config(plan, packing), indent=1), encoding="utf-8")
    return Saved(folder, packing, shards.nbytes)


def saved_config(plan: Plan, packing: Packing) -> dict[str, Any]:
    """The model's, which says of the packed weights what they are. What stands in a file of its own stays there."""
    own = {key: value for key, value in plan.config.items() if key not in ("generation_config", "torch_dtype")}
    return own | {"dtype": dense_format(plan), KEY: packing.as_config()}


def dense_format(plan: Plan) -> str | None:
    """The number format of what is not packed: the one asked for, else the model's."""
    asked = plan.origins["dtype"] not in ("default", "auto")
    found: str | None = plan.settings["dtype"] if asked else plan.config.get("dtype")
    return found


def numpy_dtype(name: str | None) -> Any:
    """None for a format that is no float, and so leaves everything as it is."""
    import ml_dtypes
    import numpy as np

    known = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}
    return np.dtype(known[name]) if name in known else None


def check_empty(folder: Path) -> None:
    if folder.is_dir() and next(folder.iterdir(), None) is None:
        return
    if folder.exists() or folder.is_symlink():
        raise UserError.of(
            f"{folder} {'is not empty' if folder.is_dir() else 'is no folder'}, and nothing is overwritten",
            "--output",
            "name a folder that does not exist yet",
        )


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A folder beside this one to write into, which takes its name when all is written, and goes when that fails.

    One that is left by a process that was killed has no config.json, so it is no checkpoint.
    """
    partial = folder.absolute().parent / f".{folder.name}.{os.getpid()}.partial"
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        yield partial
        partial.rename(folder)
    except PermissionError:
        raise
    except OSError as error:
        problem = Problem(f"{folder} cannot be written: {(error.strerror or str(error)).lower()}", "--output")
        raise UserError(problem, exit_code=ExitCode.FAILED) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
