"""The format: four bits a weight and one bfloat16 scale for each group of a row, symmetric about zero."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from core.errors import UserError
from core.interfaces.model import Role
from core.interfaces.quantizer import Packed, Quantizer

LAYERS: frozenset[Role] = frozenset({"qkv", "o", "gate_up", "down"})
LOWEST, HIGHEST = -8, 7
SHARES = np.arange(1.1, 0.79, -0.025, dtype=np.float32)
"""Of a group's widest scale, what the search tries, with either sign."""

Matrix = NDArray[np.float32]


class GroupInt4(Quantizer):
    """weight[n, k] = (code - 8) * scale[n, k // group], codes from 0 to 15.

    A scale may be negative: the longer side of a group gets the code -8, which the other side lacks. ``codes`` holds two of
    them a byte, the one of the even column in the low half.

    ``group_size`` 0: one group a row. ``pad``: a row that groups do not divide is filled up with zeros, which are stored.
    ``search``: of several scales for each group, keep the one with the least squared error, each weight's weighed by its size.
    ``activations``: what a fast path may round activations to. It is no part of the weights' values.
    """

    name = "wint4"
    layout = "int4_group"

    def __init__(
        self,
        group_size: int = 128,
        *,
        search: bool = False,
        pad: bool = False,
        head: Quantizer | None = None,
        activations: str = "int8",
    ) -> None:
        """``head``: what packs the head; None leaves it alone."""
        self.roles = LAYERS if head is None else LAYERS | {"head"}
        self._group_size = group_size
        self._search = search
        self._pad = pad
        self._head = head
        self._activations = activations

    def of_role(self, role: Role) -> Quantizer:
        return self._head if role == "head" and self._head is not None else self

    def pack(self, weight: Matrix) -> Packed:
        rows, columns = weight.shape
        group = self._group_size or columns
        if columns % group and not self._pad:
            raise UserError.of(
                f"groups of {group} weights do not divide rows of {columns}",
                "",
                "--quant-wint4-pad: fill each row up with zeros",
                "--quant-wint4-group-size 0: one scale a row",
            )
        missing = stored_columns(columns, self._group_size) - columns
        filled = np.pad(weight, ((0, 0), (0, missing))) if missing else np.ascontiguousarray(weight)
        groups = filled.reshape(-1, self._group_size or columns + missing)
        scale = self._scales(groups)
        steps = encode(groups, scale)
        steps -= LOWEST
        codes = steps.astype(np.uint8).reshape(rows, -1)
        arrays = {
            "codes": codes[:, ::2] | codes[:, 1::2] << 4,
            "scale": scale.reshape(rows, -1).astype(ml_dtypes.bfloat16),
        }
        return Packed((rows, columns), arrays, {"group_size": groups.shape[1], "activations": self._activations})

    def unpack(self, packed: Packed) -> Matrix:
        stored = packed.arrays["codes"]
        rows, half = stored.shape
        codes = np.empty((rows, 2 * half), np.float32)
        codes[:, ::2] = stored & 15
        codes[:, 1::2] = stored >> 4
        scale = packed.arrays["scale"].astype(np.float32)
        values: Matrix = (codes.reshape(rows, scale.shape[1], -1) + LOWEST) * scale[:, :, None]
        return np.ascontiguousarray(values.reshape(rows, -1)[:, : packed.shape[1]])

    def adopt(self, tensors: dict[str, NDArray[Any]], shape: tuple[int, int]) -> Packed:
        words, scale = tensors.pop("weight_packed"), tensors.pop("weight_scale")
        if tuple(tensors.pop("weight_shape", shape)) != shape:
            raise ValueError(f"it is not of shape {list(shape)}")
        arrays = {"codes": np.ascontiguousarray(words).view(np.uint8), "scale": scale}  # eight codes a word, lowest bits first
        return Packed(shape, arrays, {"group_size": self._group_size or shape[1], "activations": self._activations})

    def columns(self, packed: Packed, first: int, last: int) -> Packed | None:
        group = self._group_size
        unit = group or 2
        if first % unit or (last % unit and last != packed.shape[1]):
            return None
        end = stored_columns(last, group)
        codes, scale = packed.arrays["codes"][:, first // 2 : end // 2], packed.arrays["scale"]
        if group:
            scale = scale[:, first // group : end // group]
        arrays = {"codes": np.ascontiguousarray(codes), "scale": np.ascontiguousarray(scale)}
        constants = {**packed.constants, "group_size": group or end - first}
        return Packed((packed.shape[0], last - first), arrays, constants)

    def bits_per_weight(self, in_features: int) -> float:
        return bits_per_weight(in_features, self._group_size)

    def tile(self) -> Any | None:
        try:
            from quant_wint4.tile import group_tile
        except ImportError:  # without Triton
            return None
        return group_tile

    def _scales(self, groups: Matrix) -> Matrix:
        best = rounded(widest_scale(groups))
        if not self._search:
            return best
        widest, least = best, squared_error(groups, best)
        for share in (*SHARES, *-SHARES):
            scale = rounded(widest * share)
            error = squared_error(groups, scale)
            better = error < least
            best, least = np.where(better, scale, best), np.where(better, error, least)
        return best


def stored_columns(columns: int, group_size: int) -> int:
    """With what a row is filled up. Two codes share a byte."""
    unit = group_size or 2
    return -(-columns // unit) * unit


def bits_per_weight(in_features: int, group_size: int) -> float:
    stored = stored_columns(in_features, group_size)
    return (4 * stored + 16 * (stored // group_size if group_size else 1)) / in_features


def widest_scale(groups: Matrix) -> Matrix:
    """[groups]: the smallest scale, of either sign, that clips nothing."""
    above, below = groups.max(axis=1).clip(0), -groups.min(axis=1).clip(None, 0)
    plain, mirrored = (np.maximum(most / HIGHEST, least / -LOWEST) for most, least in ((above, below), (below, above)))
    scale: Matrix = np.where(plain <= mirrored, plain, -mirrored)
    return scale


def rounded(scale: Matrix) -> Matrix:
    held: Matrix = scale.astype(ml_dtypes.bfloat16).astype(np.float32)
    return held


def encode(groups: Matrix, scale: Matrix) -> Matrix:
    steps = np.divide(groups, scale[:, None], out=np.zeros_like(groups), where=scale[:, None] != 0)
    codes: Matrix = np.clip(np.rint(steps, out=steps), LOWEST, HIGHEST, out=steps)
    return codes


def squared_error(groups: Matrix, scale: Matrix) -> Matrix:
    """[groups], weighed by the weights' size: else the search clips the largest, on which the most depends."""
    error = encode(groups, scale)
    error *= scale[:, None]
    error -= groups
    result: Matrix = np.einsum("gk,gk,gk->g", error, error, np.abs(groups))
    return result


class RowInt8(Quantizer):
    """The head's format: eight bits a weight and one float32 scale a row. Four would cost more than they save."""

    name = "wint8"
    layout = "int8_row"
    roles: frozenset[Role] = frozenset({"head"})

    def __init__(self, activations: str = "int16") -> None:
        self._activations = activations

    def pack(self, weight: Matrix) -> Packed:
        scale = np.abs(weight).max(axis=1) / np.float32(127)
        steps = np.divide(weight, scale[:, None], out=np.zeros_like(weight, order="C"), where=scale[:, None] > 0)
        codes = np.clip(np.rint(steps, out=steps), -127, 127).astype(np.int8)
        rows, columns = weight.shape
        return Packed((rows, columns), {"codes": codes, "scale": scale}, {"activations": self._activations})

    def unpack(self, packed: Packed) -> Matrix:
        values: Matrix = packed.arrays["codes"] * packed.arrays["scale"][:, None]
        return values

    def bits_per_weight(self, in_features: int) -> float:
        return 8 + 32 / in_features

    def tile(self) -> Any | None:
        try:
            from quant_wint4.tile import row_tile
        except ImportError:  # without Triton
            return None
        return row_tile
