"""Codes of e4m3 with scales, by block of 128 x 128 for weights and by 128 columns of a token; their product in plain torch.

A token's activations have a float32 scale for every 128 columns, from their largest. So a product is, in float32, the sum over
those groups of the group's sum of code * code times both scales.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 128
LARGEST = 448.0  # of e4m3
SMALLEST = 1e-30  # scale of a group: one of zeros has one too
ROWS = 32 * BLOCK  # rows of weights that are float32 at a time when emulated


def emulated(x: Tensor, codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    rounded = values(*by_token(x))
    parts = zip(torch.split(codes, ROWS), torch.split(scale, ROWS // BLOCK), strict=True)
    return torch.cat([functional.linear(rounded, values(part, of_part)) for part, of_part in parts], 1).to(dtype)


def by_token(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [T, in] and scales [T, in / 128] of activations [T, in]."""
    groups = -(-x.shape[1] // BLOCK)
    filled = functional.pad(x.float(), (0, -x.shape[1] % BLOCK)).view(len(x), groups, BLOCK)
    scale = (filled.abs().amax(2) * (1 / LARGEST)).clamp(min=SMALLEST)
    codes = (filled * (1 / scale)[..., None]).flatten(1)[:, : x.shape[1]]
    return codes.to(torch.float8_e4m3fn), scale


def values(codes: Tensor, scale: Tensor) -> Tensor:
    """Float32 [rows, in]; ``scale`` [rows or blocks of rows, blocks of columns]."""
    each = scale.repeat_interleave(BLOCK, 1)[:, : codes.shape[1]]
    if len(scale) != len(codes):
        each = each.repeat_interleave(BLOCK, 0)[: len(codes)]
    return codes.float() * each
