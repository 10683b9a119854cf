"""The format: e4m3 weights in blocks of 128 x 128, each with a float32 scale."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from core.errors import UserError
from core.interfaces.model import Role
from core.interfaces.quantizer import Packed, Quantizer

LAYERS: frozenset[Role] = frozenset({"qkv", "o", "gate_up", "down"})
BLOCK = 128  # rows and columns that share a scale
LARGEST = np.float32(448)  # of e4m3, which has no infinity

Matrix = NDArray[np.float32]


class BlockFp8(Quantizer):
    """weight[n, k] = codes[n, k] * scale[n // 128, k // 128]; the largest weight of a block is 448 times its scale.

    Blocks at the lower and the right edge have what is left. Nothing is filled up: there are as many codes as weights.

    Whoever multiplies by this layout rounds activations to e4m3 as well, each token with a scale for every 128 columns.
    """

    name = "block_wise_fp8"
    layout = "fp8_block"
    rows_together = BLOCK

    def __init__(self, *, head: bool = False) -> None:
        self.roles = LAYERS | {"head"} if head else LAYERS

    def pack(self, weight: Matrix) -> Packed:
        rows, columns = weight.shape
        codes = np.empty((rows, columns), ml_dtypes.float8_e4m3fn)
        scale = np.empty((blocks(rows), blocks(columns)), np.float32)
        for number, first in enumerate(range(0, rows, BLOCK)):
            part = weight[first : first + BLOCK]
            largest = np.maximum.reduceat(np.abs(part).max(axis=0), np.arange(0, columns, BLOCK))
            scale[number] = largest / LARGEST
            each = spread(scale[number], columns)
            steps = np.divide(part, each, out=np.zeros(part.shape, np.float32), where=each > 0)
            # Below the smallest normal number a scale is coarse, and the largest weight may lie beyond 448 of it.
            codes[first : first + BLOCK] = np.clip(steps, -LARGEST, LARGEST, out=steps)
        return Packed((rows, columns), {"codes": codes, "scale": scale})

    def unpack(self, packed: Packed) -> Matrix:
        rows, columns = packed.shape
        values = packed.arrays["codes"].astype(np.float32)
        for number, first in enumerate(range(0, rows, BLOCK)):
            values[first : first + BLOCK] *= spread(packed.arrays["scale"][number], columns)
        return values

    def bits_per_weight(self, in_features: int) -> float:
        return bits_per_weight(in_features)

    def adopt(self, tensors: dict[str, NDArray[Any]], shape: tuple[int, int]) -> Packed:
        codes, scale = tensors.pop("weight"), tensors.pop("weight_scale_inv")  # by which codes are multiplied, as ours
        return Packed(shape, {"codes": codes, "scale": scale.astype(np.float32)})

    def rows(self, packed: Packed, first: int, last: int) -> Packed:
        if first % BLOCK or (last % BLOCK and last != packed.shape[0]):
            raise UserError.of(
                f"rows {first} to {last} cannot be taken out of a matrix that was packed in blocks of {BLOCK} rows",
                "",
                "serve it on one rank",
                "start from a checkpoint that is not packed",
            )
        scale = packed.arrays["scale"][first // BLOCK : blocks(last)]
        return Packed((last - first, packed.shape[1]), {"codes": packed.arrays["codes"][first:last], "scale": scale})

    def columns(self, packed: Packed, first: int, last: int) -> Packed | None:
        if first % BLOCK or (last % BLOCK and last != packed.shape[1]):
            return None
        scale = packed.arrays["scale"][:, first // BLOCK : blocks(last)]
        arrays = {"codes": packed.arrays["codes"][:, first:last], "scale": scale}
        return Packed((packed.shape[0], last - first), {key: np.ascontiguousarray(array) for key, array in arrays.items()})


def blocks(number: int) -> int:
    """How many blocks so many rows or columns have, the last perhaps a short one."""
    return -(-number // BLOCK)


def spread(scale: Matrix, columns: int) -> Matrix:
    """[columns] from one a block."""
    each: Matrix = np.repeat(scale, BLOCK)[:columns]
    return each


def bits_per_weight(in_features: int) -> float:
    return 8 + 32 * blocks(in_features) / (BLOCK * in_features)
