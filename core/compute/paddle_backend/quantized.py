"""Linears that multiply by packed weights as they are, on a CUDA device: Paddle's own weight-only products.

Paddle rearranges codes for the device, and nothing public does it but ``weight_quantize``, which quantizes as well. So codes go
through it one bit at a time, as a matrix of plus and minus the largest code: its scales are 1 then, whatever the codes are, and
the bits come out where the rearrangement puts them. The scales are ours.
"""

from __future__ import annotations

import logging
from functools import cache, partial

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import Tensor
from paddle.nn.quant import weight_only_linear, weight_quantize

from core.compute.paddle_backend.linear import PaddleLinear, QuantizedKernel, Target
from core.interfaces.model import Role
from core.interfaces.quantizer import Packed

log = logging.getLogger("dovetail.compute")

GROUPS = (64, 128)  # weights to a scale that Paddle's four-bit product knows
FITS = 64  # what its products want rows and columns to be multiples of
Codes = NDArray[np.uint8]


class WeightOnlyLinear(PaddleLinear):
    """``codes`` [out, in] from 0 to 2**bits - 1, each so much above its value as half of that; ``scale`` [groups, out]."""

    def __init__(self, role: Role, codes: Codes, scale: NDArray[np.float32], bits: int, group: int, target: Target) -> None:
        """``group``: weights to a scale; -1: one scale a row."""
        self._arch = capability()
        self._weight = rearranged(codes, bits, self._arch).to(target.place)
        self._scale = paddle.to_tensor(scale[0] if group == -1 else scale, dtype=target.dtype, place=target.place)
        self._apply = partial(
            weight_only_linear,
            weight=self._weight,
            weight_scale=self._scale,
            weight_dtype=f"int{bits}",
            arch=self._arch,
            group_size=group,
        )
        nbytes = sum(each.size * each.element_size() for each in (self._weight, self._scale))
        super().__init__(
            role, codes.shape, nbytes, f"int{bits} {'a row' if group == -1 else f'in groups of {group}'}, by Paddle"
        )

    def __call__(self, x: Tensor) -> Tensor:
        return self._apply(x)


def rearranged(codes: Codes, bits: int, arch: int) -> Tensor:
    """Codes as Paddle's product for this architecture wants them: int8 on the host, where they have four bits two a byte."""
    largest, algorithm = 2 ** (bits - 1) - 1, f"weight_only_int{bits}"
    high = 1 << (bits - 1)  # set in a code above zero, as it comes out
    here = np.uint8(high if bits == 8 else high | high << 4)
    out = None
    for bit in range(bits):
        plane = np.where(codes.T >> bit & 1, np.float32(largest), np.float32(-largest))
        quantized, _ = weight_quantize(paddle.to_tensor(plane, place=paddle.CPUPlace()).cast("bfloat16"), algorithm, arch)
        found = (quantized.numpy().view(np.uint8) & here) >> (bits - 1 - bit)
        out = found if out is None else out | found
    assert out is not None
    return paddle.to_tensor(out.view(np.int8), place=paddle.CPUPlace())


def int8_row(role: Role, packed: Packed, target: Target) -> PaddleLinear | None:
    if not _usable(packed, target) or not works(8, -1, target):
        return None
    codes = packed.arrays["codes"].view(np.uint8) ^ np.uint8(128)
    return WeightOnlyLinear(role, codes, packed.arrays["scale"][None].astype(np.float32), 8, -1, target)


def int4_group(role: Role, packed: Packed, target: Target) -> PaddleLinear | None:
    pairs, group = packed.arrays["codes"], int(packed.constants["group_size"])
    if 2 * pairs.shape[1] != packed.shape[1]:  # filled up
        return None
    group = -1 if group == packed.shape[1] else group
    if group not in (-1, *GROUPS) or not _usable(packed, target) or not works(4, group, target):
        return None
    codes = np.stack((pairs & 15, pairs >> 4), -1).reshape(packed.shape)
    return WeightOnlyLinear(role, codes, packed.arrays["scale"].astype(np.float32).T, 4, group, target)


def _usable(packed: Packed, target: Target) -> bool:
    fits = not any(size % FITS for size in packed.shape)
    return fits and target.dtype == "bfloat16" and not isinstance(target.place, paddle.CPUPlace)


def capability() -> int:
    major, minor = paddle.device.cuda.get_device_capability()
    return int(major) * 10 + int(minor)


@cache
def works(bits: int, group: int, target: Target) -> bool:
    """Whether this Paddle on this device multiplies so, and rightly: tried once before it is relied on."""
    random = np.random.default_rng(0)
    codes = random.integers(0, 2**bits, (128, 256), dtype=np.uint8)
    groups = 1 if group == -1 else 256 // group
    scale = random.standard_normal((groups, 128), dtype=np.float32)
    values = (codes.astype(np.float32) - 2 ** (bits - 1)) * scale.T.repeat(256 // groups, 1)
    x = random.standard_normal((5, 256), dtype=np.float32)
    right = x @ values.T
    try:
        linear = WeightOnlyLinear("o", codes, scale, bits, group, target)
        found = linear(paddle.to_tensor(x, dtype=target.dtype, place=target.place)).cast("float32").numpy()
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        log.warning("packed weights of %d bits are held as %s: Paddle cannot multiply by them: %s", bits, target.dtype, error)
        return False
    if np.abs(found - right).max() < 0.02 * np.abs(right).max():
        return True
    log.warning("packed weights of %d bits are held as %s: Paddle multiplies by them wrongly here", bits, target.dtype)
    return False


WEIGHT_ONLY: dict[str, QuantizedKernel] = {"int8_row": int8_row, "int4_group": int4_group}
