"""Checkpoints that are saved packed: what their config.json says, which tensors they have, and their weights, read or written.

A linear is stored as its quantizer's arrays, stacked whole, under its canonical name: "layers.3.qkv.codes". What is not packed
has the array "weight". So the same folder comes of any layout a model is published in, and is read without one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.errors import UserError
from core.interfaces.model import (
    LINEAR_ROLES,
    Checkpoint,
    DecoderSpec,
    Role,
    Tensor,
    Weight,
    WeightName,
    weight_names,
)
from core.interfaces.quantizer import Packed, Quantizer, packed_chunks
from core.models.layouts import did_not_find

KEY = "quantization_config"
METHOD = "dovetail"
VERSION = 1
DENSE = "weight"
AGAIN = "save it again: dovetail quantize"


@dataclass(frozen=True)
class Packer:
    """Who packed something: the quantizer's name, its plugin, and that plugin's settings."""

    quantizer: str
    plugin: str
    settings: Mapping[str, Any]

    def as_table(self) -> dict[str, Any]:
        return {"quantizer": self.quantizer, "plugin": self.plugin, "settings": dict(self.settings)}


@dataclass(frozen=True)
class Packing(Packer):
    """Who packed a checkpoint, and the layout of each packed role. ``head``: who packed the head, where that was another.

    ``adopted``: another program did, and this quantizer reads its tensors, under the names and in the order of that program.
    """

    layouts: Mapping[Role, str]
    adopted: bool = False
    head: Packer | None = None

    @property
    def of_layers(self) -> bool:
        """Whether more than a head is packed."""
        return self.adopted or not self.layouts.keys() <= {"head"}

    @property
    def of_head(self) -> Packer | None:
        return (self.head or self) if "head" in self.layouts else None

    def as_config(self) -> dict[str, Any]:
        head = {} if self.head is None else {"head": self.head.as_table()}
        return {"quant_method": METHOD, "version": VERSION, **self.as_table(), **head, "layouts": dict(self.layouts)}


def layouts(quantizer: Quantizer) -> dict[Role, str]:
    return {role: quantizer.of_role(role).layout for role in LINEAR_ROLES if role in quantizer.roles}


def read_packing(
    config: Mapping[str, Any],
    model: str,
    known: Sequence[str] = (),
    adopted: Callable[[Mapping[str, Any]], Packing | None] = lambda found: None,
) -> Packing | None:
    """What config.json says of packed weights; None when they are not packed.

    :param known: the quantizers that are installed, to be named where the checkpoint's own cannot be read.
    :param adopted: which of them reads what another program packed.
    :raises UserError: for another method that nobody reads, or a description that is damaged or newer than this reader.
    """
    found = config.get(KEY) or config.get("compression_config")
    if not found:
        return None
    if not isinstance(found, Mapping):
        raise foreign(found, model, known)
    if found.get("quant_method") != METHOD:
        packing = adopted(found)
        if packing is None:
            raise foreign(found, model, known)
        return packing
    if found.get("version") != VERSION:
        raise UserError.of(
            f"{model} is packed in version {found.get('version')!r} of Dovetail's layout, and this one reads version {VERSION}",
            "model",
            "use the Dovetail that saved it",
            f"or {AGAIN}",
        )
    stored = found.get("layouts")
    packer, head = _packer(found), None if found.get("head") is None else _packer(found["head"])
    if (
        packer is None
        or (head is None and "head" in found)
        or not isinstance(stored, Mapping)
        or not stored
        or not set(stored) <= set(LINEAR_ROLES)
        or not all(isinstance(layout, str) and layout for layout in stored.values())
    ):
        raise UserError.of(
            f"the {KEY} of {model} does not say which quantizer packed what, and how",
            f"{KEY} in the model's config",
            "fetch the checkpoint again",
            f"or {AGAIN}",
        )
    return Packing(packer.quantizer, packer.plugin, packer.settings, stored, head=head)


def _packer(table: Any) -> Packer | None:
    match table:
        case {"quantizer": str(quantizer), "plugin": str(plugin), "settings": Mapping() as settings} if quantizer and plugin:
            return Packer(quantizer, plugin, settings)
    return None


def foreign(found: Any, model: str, known: Sequence[str]) -> UserError:
    """Weights that somebody else packed are never taken for what they are not."""
    here = f"pack it here: --quantization {'|'.join(known)}" if known else "load it as it is"
    table = found if isinstance(found, Mapping) else {}
    if "quantization" in table and "quant_method" not in table:  # FastDeploy's spelling
        method = table.get("dense_quant_type") or table["quantization"]
        if not table.get("is_quantized"):
            return UserError.of(
                f"config.json of {model} asks FastDeploy to pack the weights as {method} while it loads them",
                f"{KEY} in the model's config",
                f"take {KEY} out of config.json, and {here.replace('pack it', 'have them packed')}",
            )
        method = f"FastDeploy as {method}"
    else:
        method = str(table.get("quant_method") or "a method without a name")
        detail = table.get("format") or (f"{table['bits']} bits" if "bits" in table else "")
        method += f" ({detail})" if detail else ""
    return UserError.of(
        f"the weights of {model} are packed by {method}, which cannot be read here",
        f"{KEY} in the model's config",
        f"choose the checkpoint that was packed, in bfloat16 or float16, and {here}",
    )


def packed_weights(checkpoint: Checkpoint, spec: DecoderSpec, packing: Packing, quantizer: Quantizer) -> Iterator[Weight]:
    """Every weight in loading order, packed ones as they are stored. The memory behind one is given back after it."""
    check_layouts(packing, quantizer)
    names = checkpoint.names()

    def tensor(name: str, dtype: np.dtype[Any] | None, shape: tuple[int, ...]) -> Tensor:
        if name not in names:
            raise did_not_find(name, names)
        found = checkpoint.tensor(name)
        if found.shape != shape or (dtype is not None and found.dtype != dtype):
            wanted = f"{list(shape)}{'' if dtype is None else f' of {dtype}'}"
            raise UserError.of(
                f"tensor {name!r} is {list(found.shape)} of {found.dtype}, but the model's config asks for {wanted}",
                "",
                f"fetch the checkpoint again, or {AGAIN}",
            )
        return found

    expected = {role: outline(quantizer.of_role(role), spec.shape(role)) for role in packing.layouts}
    for weight in weight_names(spec):
        tied = weight.role == "head" and spec.tied_head
        if weight.role in expected:
            like = expected[weight.role]
            places = {key: f"{weight}.{key}" for key in like.arrays}
            arrays = {key: tensor(place, like.arrays[key].dtype, like.arrays[key].shape) for key, place in places.items()}
            yield Weight(weight, (), tied, Packed(like.shape, arrays, like.constants))
            del arrays
        else:
            places = {DENSE: f"{WeightName('embed') if tied else weight}.{DENSE}"}
            whole = tensor(places[DENSE], None, spec.shape(weight.role))
            edges = np.cumsum(spec.parts(weight.role))[:-1]
            yield Weight(weight, tuple(np.split(whole, edges)), tied)
            del whole
        for place in places.values():
            checkpoint.release(place)


def check_layouts(packing: Packing, quantizer: Quantizer) -> None:
    alone = packing.layouts.keys() <= {"head"}  # what is not packed in the checkpoint may be packed while it is loaded
    ours = {
        role: layout
        for role, layout in layouts(quantizer).items()
        if (role == "head" if alone else role != "head" or role in packing.layouts)
    }
    if ours != dict(packing.layouts):
        stored, reads = (", ".join(f"{role} {layout}" for role, layout in each.items()) for each in (packing.layouts, ours))
        raise UserError.of(
            f"the checkpoint is packed as {stored}; the installed plugin {packing.plugin} reads {reads}",
            "",
            f"install the version of {packing.plugin} that packed it",
            f"or {AGAIN}",
        )


def outline(quantizer: Quantizer, shape: tuple[int, ...]) -> Packed:
    """What packing any matrix of this shape gives: its constants, and arrays without content.

    Seen on two small matrices of zeros, since each further block of rows makes arrays longer by the same.
    """
    rows, columns = shape
    least = (rows - 1) % quantizer.rows_together + 1
    counts = least, least + quantizer.rows_together
    small, larger = (quantizer.pack(np.zeros((count, columns), np.float32)) for count in counts)
    blocks = (rows - least) // quantizer.rows_together

    def grown(key: str) -> Tensor:
        pairs = zip(small.arrays[key].shape, larger.arrays[key].shape, strict=True)
        return np.broadcast_to(np.empty((), small.arrays[key].dtype), tuple(a + (b - a) * blocks for a, b in pairs))

    return Packed((rows, columns), {key: grown(key) for key in small.arrays}, small.constants)


def tensors(weights: Iterable[Weight], quantizer: Quantizer, dtype: np.dtype[Any] | None) -> Iterator[tuple[str, Tensor]]:
    """What is stored of weights that stream in, one in memory at a time; a tied head that is not packed is not stored.

    :param dtype: of the embedding and of linears that are left alone; None leaves them as they are. Norms always are.
    """
    for weight in weights:
        role = weight.name.role
        if role in quantizer.roles:
            its = quantizer.of_role(role)
            packed = its.stack(list(packed_chunks(weight, its)))
            for key in sorted(packed.arrays, key=lambda key: -packed.arrays[key].itemsize):  # wide numbers first: aligned
                yield f"{weight.name}.{key}", packed.arrays[key]
        elif not weight.tied:
            whole = weight.parts[0] if len(weight.parts) == 1 else np.concatenate(weight.parts)
            yield f"{weight.name}.{DENSE}", whole if dtype is None or role == "norm" else whole.astype(dtype, copy=False)
