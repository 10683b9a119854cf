"""From a checkpoint to canonical weights, one at a time, so that little more than the loaded model is ever in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.interfaces.model import (
    Checkpoint,
    CheckpointFormat,
    DecoderSpec,
    ModelFamily,
    ModelFolder,
    Stored,
    Tensor,
    Weight,
    WeightName,
    weight_names,
)

# What a number can be that stands for itself.
PLAIN = frozenset({"float16", "bfloat16", "float32", "float64"})


def read_config(folder: ModelFolder, formats: Mapping[str, CheckpointFormat]) -> Mapping[str, Any]:
    """The config in config.json's terms; its number format, under whichever key it stood, is at "dtype"."""
    config = dict(formats[folder.format].config(location(folder)))
    dtype = config.get("dtype") or config.get("torch_dtype")
    if dtype is not None:
        config["dtype"] = str(dtype).removeprefix("torch.")
    return config


def open_checkpoint(folder: ModelFolder, formats: Mapping[str, CheckpointFormat], seed: int = 0) -> Checkpoint:
    """``seed`` is that of random weights whose name brings none."""
    path = location(folder)
    if folder.path is None and "@" not in path.name:
        path = Path(f"{path.name}@{seed}")
    return formats[folder.format].open(path)


def location(folder: ModelFolder) -> Path:
    """Where the folder's format finds it. A model without files is found by its name."""
    return folder.path if folder.path is not None else Path(folder.name)


def weights(checkpoint: Checkpoint, family: ModelFamily, spec: DecoderSpec) -> Iterator[Weight]:
    """Every weight in loading order. The memory behind one is given back when the next is asked for."""
    names = checkpoint.names()
    held: dict[str, Tensor] = {}
    try:
        for weight in weight_names(spec):
            stored = family.stored(weight, spec, names)
            wanted = {part.name for part in stored}
            for name in [name for name in held if name not in wanted]:
                del held[name]
                checkpoint.release(name)
            for name in sorted(wanted - held.keys()):
                held[name] = checkpoint.tensor(name)
            check_shape(weight, stored, held, spec)
            tied = weight.role == "head" and spec.tied_head
            yield Weight(weight, tuple(view(held[part.name], part) for part in stored), tied)
    finally:
        for name in held:
            checkpoint.release(name)


def view(tensor: Tensor, part: Stored) -> Tensor:
    return (tensor.T if part.transposed else tensor)[part.rows]


def check_shape(weight: WeightName, stored: tuple[Stored, ...], held: Mapping[str, Tensor], spec: DecoderSpec) -> None:
    rows, columns = spec.parts(weight.role), spec.shape(weight.role)[1:]
    if len(stored) != len(rows):
        raise ValueError(f"the model family gives {len(stored)} parts of {weight}, which has {len(rows)}")
    for name in dict.fromkeys(part.name for part in stored):
        of_name = [(part, count) for part, count in zip(stored, rows, strict=True) if part.name == name]
        expected = (sum(count for _, count in of_name), *columns)
        transposed = of_name[0][0].transposed
        expected = expected[::-1] if transposed else expected
        if held[name].dtype.name not in PLAIN:
            raise UserError.of(
                f"tensor {name!r} is of {held[name].dtype}: it is packed, and the model's config does not say how",
                "",
                "choose the checkpoint that was packed, or one whose config.json says how it is",
            )
        if held[name].shape != expected:
            raise UserError.of(
                f"tensor {name!r} has the shape {list(held[name].shape)}, but the model's config asks for {list(expected)}",
                "",
                "fetch the checkpoint again: its config belongs to another model, or it is packed in an unknown format",
            )
