# ruff: noqa: ANN001, ANN201, N803 - arguments are pointers and scalars of Triton, constants are in capitals
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
"""The format as fused kernels of a CUDA device read it."""

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]


@triton.jit
def tile(codes, scale, output, is_output, start, IN: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    column = start + tl.arange(0, COLUMNS)
    place = codes + output.to(tl.int64)[:, None] * IN + column[None, :]
    steps = tl.load(place, mask=is_output[:, None] & (column < IN)[None, :], other=0)
    return steps.to(tl.float32) * tl.load(scale + output, mask=is_output, other=0.0)[:, None]
