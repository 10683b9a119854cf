# ruff: noqa: ANN001, ANN201, ANN202, N803 - a kernel's arguments are pointers and scalars of Triton, its constants are in capitals
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,misc"
"""Packed weights, read where they lie by the function their quantizer gives (``Quantizer.tile``).

Kernels for a few tokens read tiles of them. For more, they are unpacked in every step, for cuBLAS, by the same function: what
a weight stands for does not hang on how many tokens it is multiplied by.
"""

from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor
from torch.nn import functional

from core.compute.torch_backend.linear import Target, TorchLinear, borrowed
from core.compute.torch_backend.triton.tiling import power_of_two
from core.interfaces.model import Role
from core.interfaces.quantizer import Packed

OUTPUTS, COLUMNS = 16, 256  # that a program unpacks


class Reading:
    """How kernels read a weight: two arrays, the tile function, its group, and what rounds activations, if anything does."""

    def __init__(
        self, first: Tensor, second: Tensor, shape: tuple[int, int], tile: Any, group: int = 0, rounding: Any = None
    ) -> None:
        self.arrays = (first, second)
        self.outputs, self.columns = shape
        self.constants = {"TILE": tile, "GROUP": group, "IN": shape[1], "ROUND": rounding}


class TiledLinear(TorchLinear):
    def __init__(self, role: Role, packed: Packed, target: Target, tile: Any, name: str) -> None:
        arrays = [borrowed(array).to(target.device, copy=True) for array in packed.arrays.values()]
        groups = [int(value) for value in packed.constants.values() if isinstance(value, int)]
        self.reading = Reading(arrays[0], arrays[-1], packed.shape, tile, *groups)
        super().__init__(role, packed.shape, sum(array.nbytes for array in arrays), f"{name}, read packed")

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.unpacked(x.dtype))

    def logits(self, x: Tensor) -> Tensor:
        weight = self.unpacked(x.dtype)
        return torch.mm(x, weight.T, out_dtype=torch.float32) if x.is_cuda else functional.linear(x.float(), weight.float())

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """[out, in]"""
        out = torch.empty((self.out_features, self.in_features), dtype=dtype, device=self.reading.arrays[0].device)
        grid = triton.cdiv(self.out_features, OUTPUTS), triton.cdiv(self.in_features, COLUMNS)
        columns = min(COLUMNS, power_of_two(self.in_features))
        _unpack[grid](
            *self.reading.arrays, out, self.out_features, OUTPUTS=OUTPUTS, COLUMNS=columns,
            **{name: self.reading.constants[name] for name in ("TILE", "GROUP", "IN")},
        )  # fmt: skip
        return out


def readable(packed: Packed) -> bool:
    """Whether tile functions can be told all there is: at most two arrays and one whole number."""
    return len(packed.arrays) <= 2 and sum(isinstance(value, int) for value in packed.constants.values()) <= 1


@triton.jit
def plain_tile(weight, unused, output, is_output, start, IN: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    """Of a weight that is not packed."""
    column = start + tl.arange(0, COLUMNS)
    place = weight + output.to(tl.int64)[:, None] * IN + column[None, :]
    return tl.load(place, mask=is_output[:, None] & (column < IN)[None, :], other=0.0)


@triton.jit
def _unpack(first, second, out, outputs, IN: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr,
            TILE: tl.constexpr, GROUP: tl.constexpr):  # fmt: skip
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    start = tl.program_id(1) * COLUMNS
    column = start + tl.arange(0, COLUMNS)
    values = TILE(first, second, output, output < outputs, start, IN, COLUMNS, GROUP)
    place = out + output.to(tl.int64)[:, None] * IN + column[None, :]
    tl.store(place, values, mask=(output < outputs)[:, None] & (column < IN)[None, :])
