# ruff: noqa: ANN001, ANN201, N803, N806 - arguments are pointers and scalars of Triton, constants are in capitals
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,misc"
"""Weights of layout "fp8_block" for the kernels of a few tokens: how they are read, and how a token is rounded for them.

Sums are in float32, so that what is added up is what ``fp8_codes.emulated`` adds up. More tokens go to ``fp8_kernel``.
"""

from __future__ import annotations

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

from core.compute.torch_backend import fp8_codes
from core.compute.torch_backend.triton.arithmetic import INTERPRETED

BLOCK = tl.constexpr(fp8_codes.BLOCK)
SHARE = tl.constexpr(1 / fp8_codes.LARGEST)
SMALLEST = tl.constexpr(fp8_codes.SMALLEST)


@triton.jit
def block_tile(codes, scale, output, is_output, start, IN: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    BLOCKS: tl.constexpr = (IN + BLOCK - 1) // BLOCK
    SHARED: tl.constexpr = BLOCK if COLUMNS > BLOCK else COLUMNS
    column = start + tl.arange(0, COLUMNS)
    place = codes + output.to(tl.int64)[:, None] * IN + column[None, :]
    values = tl.load(place, mask=is_output[:, None] & (column < IN)[None, :], other=0.0).to(tl.float32)
    block = (start + tl.arange(0, COLUMNS // SHARED) * SHARED) // BLOCK
    mask = is_output[:, None] & (block < BLOCKS)[None, :]
    step = tl.load(scale + (output // BLOCK)[:, None] * BLOCKS + block[None, :], mask=mask, other=0.0)
    scaled = tl.reshape(values, [output.shape[0], COLUMNS // SHARED, SHARED]) * step[:, :, None]
    return tl.reshape(scaled, [output.shape[0], COLUMNS])


@triton.jit
def by_block(x):
    """x [rows, columns] float32, of whole blocks or narrower than one: the values that ``fp8_codes.by_token`` has codes for.

    A device multiplies and adds in one: of two values that are equally near it may take the other.
    """
    SHARED: tl.constexpr = BLOCK if x.shape[1] > BLOCK else x.shape[1]
    given = tl.reshape(x, [x.shape[0], x.shape[1] // SHARED, SHARED])
    scale = tl.maximum(tl.max(tl.abs(given), 2) * SHARE, SMALLEST)[:, :, None]
    return tl.reshape(nearest(given * tl.div_rn(1.0, scale)) * scale, [x.shape[0], x.shape[1]])


@triton.jit
def nearest(x):
    """The nearest number of e4m3, the even one of two, of numbers up to 448."""
    if not INTERPRETED:
        return tl.inline_asm_elementwise(
            """{ .reg .b16 codes, low, high; .reg .b32 both;
            cvt.rn.satfinite.e4m3x2.f32 codes, $3, $2;
            cvt.rn.f16x2.e4m3x2 both, codes;
            mov.b32 {low, high}, both;
            cvt.f32.f16 $0, low; cvt.f32.f16 $1, high; }""",
            "=r,=r,r,r",
            [x],
            dtype=tl.float32,
            is_pure=True,
            pack=2,
        )
    exponent = tl.maximum((x.to(tl.int32, bitcast=True) >> 23) & 255, 121)  # smaller ones share the steps of 2**-6
    magic = (((exponent + 20) << 23) | 0x400000).to(tl.float32, bitcast=True)  # its last bit is worth a step
    return (x + magic) - magic
