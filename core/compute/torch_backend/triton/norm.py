# ruff: noqa: ANN001, ANN202, N803 - a kernel's arguments are pointers and scalars of Triton, its constants are in capitals
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,misc"
"""A norm of many tokens: a token is read once, by one program."""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor


def normed(hidden: Tensor, norm: Tensor, eps: float) -> Tensor:
    """[T, hidden] -> the same, of mean square 1 before it is scaled."""
    out = torch.empty_like(hidden)
    width = hidden.shape[1]
    _normed[(len(hidden),)](hidden, norm, out, EPS=eps, WIDTH=width, COLUMNS=triton.next_power_of_2(width), num_warps=4)
    return out


@triton.jit
def _normed(hidden, norm, out, EPS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    column = tl.arange(0, COLUMNS)
    own = tl.program_id(0).to(tl.int64) * WIDTH + column
    scale = tl.load(norm + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    values = tl.load(hidden + own, mask=column < WIDTH, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(values * values, 0) / WIDTH + EPS)
    tl.store(out + own, values * inverse * scale, mask=column < WIDTH)
