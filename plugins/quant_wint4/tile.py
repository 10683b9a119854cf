# ruff: noqa: ANN001, ANN201, N803, N806 - arguments are pointers and scalars of Triton, constants are in capitals
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
"""The formats as fused kernels of a CUDA device read them: four bits in groups, and the head's eight bits a row."""

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]


@triton.jit
def group_tile(codes, scale, output, is_output, start, IN: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    STORED: tl.constexpr = (IN + GROUP - 1) // GROUP * GROUP  # columns, the padding's included
    pair = start // 2 + tl.arange(0, COLUMNS // 2)
    row = output.to(tl.int64)[:, None]
    mask = is_output[:, None] & (pair < STORED // 2)[None, :]
    both = tl.load(codes + row * (STORED // 2) + pair[None, :], mask=mask, other=0x88)
    # The two columns of a byte share their scale: groups are of even size.
    step = tl.load(scale + row * (STORED // GROUP) + (2 * pair // GROUP)[None, :], mask=mask, other=0.0).to(tl.float32)
    even = ((both & 15).to(tl.float32) - 8.0) * step
    odd = ((both >> 4).to(tl.float32) - 8.0) * step
    return tl.interleave(even, odd)


@triton.jit
def row_tile(codes, scale, output, is_output, start, IN: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    column = start + tl.arange(0, COLUMNS)
    place = codes + output.to(tl.int64)[:, None] * IN + column[None, :]
    steps = tl.load(place, mask=is_output[:, None] & (column < IN)[None, :], other=0)
    return steps.to(tl.float32) * tl.load(scale + output, mask=is_output, other=0.0)[:, None]
