# ruff: noqa: ANN001, ANN202, N803 - a kernel's arguments are pointers and scalars of Triton, its constants are in capitals
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,misc"
"""SiLU(gate) * up of many tokens, in one pass."""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

COLUMNS = 1024


def gated(both: Tensor) -> Tensor:
    """[T, gate beside up] -> [T, intermediate]"""
    tokens, width = len(both), both.shape[1] // 2
    out = torch.empty((tokens, width), dtype=both.dtype, device=both.device)
    _gated[(tokens, triton.cdiv(width, COLUMNS))](both, out, WIDTH=width, COLUMNS=COLUMNS, num_warps=4)
    return out


@triton.jit
def _gated(both, out, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    gate = tl.load(both + token * 2 * WIDTH + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    up = tl.load(both + token * 2 * WIDTH + WIDTH + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    tl.store(out + token * WIDTH + column, gate / (1.0 + tl.exp(-gate)) * up, mask=column < WIDTH)
