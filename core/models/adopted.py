"""Checkpoints that another program packed in a format that a quantizer here has too: its tensors as they are, or a refusal."""

from __future__ import annotations

from collections.abc import Iterator

from core.errors import UserError
from core.interfaces.model import Checkpoint, DecoderSpec, ModelFamily, Stored, Weight, weight_names
from core.interfaces.quantizer import Packed, Quantizer
from core.models.layouts import did_not_find
from core.models.loading import check_shape, view
from core.models.packed import DENSE, KEY, outline


def adopted_weights(checkpoint: Checkpoint, family: ModelFamily, spec: DecoderSpec, quantizer: Quantizer) -> Iterator[Weight]:
    """Every weight in loading order, of a checkpoint that another program packed a part at a time."""
    names = checkpoint.names()
    plain = names | {f"{name.rpartition('.')[0]}.{DENSE}" for name in names}  # as if nothing were packed
    for weight in weight_names(spec):
        stored = family.stored(weight, spec, plain)
        tied = weight.role == "head" and spec.tied_head
        if weight.role in quantizer.roles:
            its, columns = quantizer.of_role(weight.role), spec.shape(weight.role)[1]
            used = [name for part in stored for name in names if name.startswith(part.name.removesuffix(DENSE))]
            shapes = [(rows, columns) for rows in spec.parts(weight.role)]
            packed = [adopted(part, shape, checkpoint, its) for part, shape in zip(stored, shapes, strict=True)]
            if any(rows % its.rows_together for rows, _ in shapes[:-1]):
                raise UserError.of(
                    f"the parts of {weight} have {', '.join(str(rows) for rows, _ in shapes)} rows, which cannot be joined "
                    f"where {its.rows_together} share a scale",
                    f"{KEY} in the model's config",
                    "choose the checkpoint that was packed",
                )
            yield Weight(weight, (), tied, packed[0] if len(packed) == 1 else its.stack(packed))
            del packed
        else:
            used = [part.name for part in stored]
            for name in used:
                if name not in names:
                    raise did_not_find(name, names)
            held = {name: checkpoint.tensor(name) for name in used}
            check_shape(weight, stored, held, spec)
            yield Weight(weight, tuple(view(held[part.name], part) for part in stored), tied)
            del held
        for name in used:
            checkpoint.release(name)


def adopted(part: Stored, shape: tuple[int, int], checkpoint: Checkpoint, quantizer: Quantizer) -> Packed:
    prefix = part.name.removesuffix(DENSE)
    names = checkpoint.names()
    tensors = {name.removeprefix(prefix): checkpoint.tensor(name) for name in names if name.startswith(prefix)}
    try:
        if part.transposed or part.rows != slice(None):
            raise ValueError("it is stored the other way round, or beside others")
        packed = quantizer.adopt(tensors, shape)
    except KeyError as error:
        raise did_not_find(f"{prefix}{error.args[0]}", names) from None
    except ValueError as error:
        raise not_adopted(prefix, quantizer, str(error)) from error
    if tensors:
        raise not_adopted(prefix, quantizer, f"{', '.join(sorted(tensors))} would be left over")
    for key, like in outline(quantizer, shape).arrays.items():
        array = packed.arrays[key]
        if (array.shape, array.dtype) != (like.shape, like.dtype):
            why = f"{key} is {list(array.shape)} of {array.dtype}, not {list(like.shape)} of {like.dtype}"
            raise not_adopted(prefix, quantizer, why)
    return packed


def not_adopted(prefix: str, quantizer: Quantizer, why: str) -> UserError:
    return UserError.of(
        f"the packed tensors of {prefix.removesuffix('.')!r} are not as {quantizer.name} has them: {why}",
        f"{KEY} in the model's config",
        "choose the checkpoint that was packed, and pack it here",
    )
