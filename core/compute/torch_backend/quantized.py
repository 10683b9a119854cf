"""Linears that multiply by packed weights as they are, on a CPU. Each is tried out once before it is relied on."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from core.compute.torch_backend.linear import QuantizedKernel, Target, TorchLinear, borrowed, in_few_sizes
from core.interfaces.model import Role
from core.interfaces.quantizer import Packed

GROUPS = (256, 128, 64, 32)  # weights to a scale that the four-bit kernel knows
LANES = 16  # rows that the four-bit kernel takes at a time
BLOCK = 512  # rows rearranged at a time: a multiple of every block that the kernel makes
SECOND = 254.0  # steps of the second digit in one of the first
SMALLEST = 1e-30  # step of a token's activations: a token of zeros has one too


class Int8Linear(TorchLinear):
    """Layout "int8_row" times activations in sixteen bits, each token with a scale of its own, whatever was asked for.

    oneDNN sums products of integers exactly, so that a row's result hangs on nothing but the row. Sixteen bits are two
    digits in base 254, multiplied as two rows: the weights, of which a small batch makes the whole cost, are read once.
    Eight would do with a scale for each block of a token, which oneDNN does not take; with one for all of it they do not.
    """

    row_by_row = True

    def __init__(self, role: Role, packed: Packed) -> None:
        self._scale = borrowed(packed.arrays["scale"]).clone()
        self._weight = torch.ops.onednn.qlinear_prepack(borrowed(packed.arrays["codes"]), None)
        self._zero = torch.zeros(len(self._scale), dtype=torch.int32)
        self._apply = torch.ops.onednn.qlinear_pointwise.default
        nbytes = int(torch.ops.mkldnn._nbytes(self._weight)) + self._scale.nbytes + self._zero.nbytes
        super().__init__(role, packed.shape, nbytes, "int8 a row, 16-bit activations by token")

    def __call__(self, x: Tensor) -> Tensor:
        return self._product(x, x.dtype)

    def logits(self, x: Tensor) -> Tensor:
        return self._product(x, torch.float32)

    def _product(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        unit = x.abs().amax(-1, keepdim=True).float().div_(127).clamp_(min=SMALLEST)
        steps = x / unit
        digits = torch.round(steps)
        both = self._sums(torch.cat((digits, steps.sub_(digits).mul_(SECOND).round_())))
        return torch.add(both[: len(x)], both[len(x) :], alpha=1 / SECOND).mul_(unit).to(dtype)

    def _sums(self, digits: Tensor) -> Tensor:
        # Unsigned with 128 for zero: with signed activations oneDNN has only a slow path.
        rows = in_few_sizes(digits.add_(128).to(torch.uint8))
        out: Tensor = self._apply(
            rows, 1.0, 128, self._weight, self._scale, self._zero, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return out[: len(digits)]


class Int4Linear(TorchLinear):
    """Layout "int4_group" times activations in bfloat16."""

    def __init__(self, role: Role, packed: Packed) -> None:
        pairs, scale = borrowed(packed.arrays["codes"]), borrowed(packed.arrays["scale"])
        rows, half = pairs.shape
        group = int(packed.constants["group_size"])
        self._group = kernel_group(group)
        self._missing = 2 * half - packed.shape[1]  # zeros that rows were filled up with
        if self._group != group:
            scale = scale.repeat_interleave(group // self._group, 1)
        self._scale_and_zero = torch.zeros(scale.shape[1], rows, 2, dtype=torch.bfloat16)
        self._scale_and_zero[:, :, 0] = scale.T
        # Blocks of rows are laid out one after the other; what makes them takes 32 bits for each code.
        self._weight = torch.cat([rearranged(part) for part in torch.split(pairs, BLOCK)])
        self._apply = torch.ops.aten._weight_int4pack_mm_for_cpu.default
        name = "a row" if group == 2 * half else f"in groups of {group}"
        super().__init__(role, packed.shape, self._weight.nbytes + self._scale_and_zero.nbytes, f"int4 {name}")

    def __call__(self, x: Tensor) -> Tensor:
        if self._missing:
            x = functional.pad(x, (0, self._missing))
        out: Tensor = self._apply(x, self._weight, self._group, self._scale_and_zero)
        return out


def rearranged(pairs: Tensor) -> Tensor:
    codes = torch.stack((pairs & 15, pairs >> 4), -1).flatten(1).int()
    out: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    return out


def kernel_group(group: int) -> int:
    """The kernel's largest group that divides this one; 0 when none does."""
    return next((size for size in GROUPS if group % size == 0), 0)


def int8_row(role: Role, packed: Packed, target: Target) -> TorchLinear | None:
    return Int8Linear(role, packed) if target.device.type == "cpu" and int8_works(target.dtype) else None


def int4_group(role: Role, packed: Packed, target: Target) -> TorchLinear | None:
    group = int(packed.constants["group_size"])
    fits = target.dtype == torch.bfloat16 and packed.shape[0] % LANES == 0 and kernel_group(group)
    return Int4Linear(role, packed) if fits and target.device.type == "cpu" and int4_works() else None


@cache
def int8_works(dtype: torch.dtype) -> bool:
    """Whether this torch on this CPU multiplies so, and rightly. The operations are not public."""
    random = np.random.default_rng(0)
    codes = random.integers(-127, 128, (96, 80), dtype=np.int8)
    codes[::7], codes[1::7] = 127, -127  # sums of pairs that overflow sixteen bits
    scale = random.random(96, dtype=np.float32)
    values = codes * scale[:, None]
    packed = Packed((96, 80), {"codes": codes, "scale": scale})
    return is_right(partial(Int8Linear, "o", packed), values, dtype)


@cache
def int4_works() -> bool:
    random = np.random.default_rng(0)
    codes = random.integers(0, 256, (96, 128), dtype=np.uint8)
    scale = random.standard_normal((96, 4), dtype=np.float32).astype(ml_dtypes.bfloat16)
    packed = Packed((96, 256), {"codes": codes, "scale": scale}, {"group_size": 64})
    digits = np.stack((codes & 15, codes >> 4), -1).reshape(96, 4, 64).astype(np.float32) - 8
    values = (digits * scale.astype(np.float32)[:, :, None]).reshape(96, 256)
    return is_right(partial(Int4Linear, "o", packed), values, torch.bfloat16)


def is_right(make: Callable[[], TorchLinear], values: NDArray[np.float32], dtype: torch.dtype) -> bool:
    x = torch.randn(9, values.shape[1], generator=torch.Generator().manual_seed(0)).to(dtype)
    right = x.float() @ torch.from_numpy(values).T
    try:
        linear = make()
        return all(bool((linear(x[:rows]) - right[:rows]).abs().max() < 0.02 * right.abs().max()) for rows in (1, 9))
    except (AttributeError, RuntimeError, TypeError):
        return False


CPU_KERNELS: dict[str, QuantizedKernel] = {"int8_row": int8_row, "int4_group": int4_group}
