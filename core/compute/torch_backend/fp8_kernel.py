# ruff: noqa: ANN001, ANN202, N803 - a kernel's arguments are pointers and scalars of Triton, its constants are in capitals
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
"""The product of ``fp8`` as two Triton kernels: activations are rounded once, then multiplied block by block.

Needs compute capability 8.9. Each group of 128 columns is one product of codes, to whose sums scales are applied in float32:
tensor cores add with fewer bits than that, and here over no more than 128 terms.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from core.compute.torch_backend import fp8_codes
from core.compute.torch_backend.triton.eight import nearest

BLOCK = tl.constexpr(fp8_codes.BLOCK)
SHARE = tl.constexpr(1 / fp8_codes.LARGEST)
SMALLEST = tl.constexpr(fp8_codes.SMALLEST)
GROUPS = 8  # of a token, rounded by one program


def product(x: Tensor, codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    out = torch.empty((len(x), len(codes)), dtype=dtype, device=x.device)
    if len(x):
        rounded, by_token = quantize(x)
        tokens, rows, warps, stages = tile(len(x))
        _multiply[(triton.cdiv(len(codes), rows), triton.cdiv(len(x), tokens))](
            rounded, by_token, codes, scale, out, *out.shape, COLUMNS=x.shape[1], TOKENS=tokens, ROWS=rows,
            num_warps=warps, num_stages=stages,
        )  # fmt: skip
    return out


def tile(tokens: int) -> tuple[int, int, int, int]:
    """Tokens and rows of weights to a program, its warps, and the groups it loads ahead."""
    if tokens <= 16:
        return 16, 32, 4, 5
    return (64, 64, 4, 4) if tokens <= 512 else (128, 128, 8, 3)


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [T, in] and scales [T, in / 128], as ``fp8_codes.by_token`` has them to the bit."""
    tokens, columns = x.shape
    groups = triton.cdiv(columns, fp8_codes.BLOCK)
    codes = torch.empty((tokens, columns), dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty((tokens, groups), dtype=torch.float32, device=x.device)
    # A fused multiply-add would round once where plain torch rounds twice.
    _quantize[(tokens, triton.cdiv(groups, GROUPS))](
        x, x.stride(0), codes, scale, columns, groups, COUNT=GROUPS, enable_fp_fusion=False
    )
    return codes, scale


@triton.jit
def _quantize(x, stride, codes, scales, columns, groups, COUNT: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * COUNT + tl.arange(0, COUNT)
    column = group[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = column < columns
    given = tl.load(x + token * stride + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(given), 1) * SHARE, SMALLEST)
    scale = tl.where(tl.max((given != given).to(tl.int32), 1) > 0, float("nan"), scale)  # a maximum would drop it
    steps = given * tl.div_rn(1.0, scale)[:, None]
    tl.store(codes + token * columns + column, _to_e4m3(steps), mask=inside)
    tl.store(scales + token * groups + group, scale, mask=group < groups)


@triton.jit
def _to_e4m3(x):
    """Converting alone is not enough: for capability 8.9 Triton goes by way of float16, which rounds twice, and its interpreter
    rounds in another way.
    """
    return nearest(x).to(tl.float8e4nv)


@triton.jit
def _multiply(x, by_token, codes, scales, out, tokens, rows, COLUMNS: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr):
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    groups: tl.constexpr = (COLUMNS + BLOCK - 1) // BLOCK
    here, there = token < tokens, row < rows
    given = x + token.to(tl.int64)[:, None] * COLUMNS
    weights = codes + row.to(tl.int64)[None, :] * COLUMNS
    block_scale = scales + tl.program_id(0) * ROWS // BLOCK * groups  # ROWS divides BLOCK
    total = tl.zeros((TOKENS, ROWS), tl.float32)
    for group in range(groups):
        column = group * BLOCK + tl.arange(0, BLOCK)
        inside = column < COLUMNS
        left = tl.load(given + column[None, :], mask=here[:, None] & inside[None, :], other=0.0)
        right = tl.load(weights + column[:, None], mask=there[None, :] & inside[:, None], other=0.0)
        scale = tl.load(by_token + token * groups + group, mask=here, other=0.0) * tl.load(block_scale + group)
        total += tl.dot(left, right) * scale[:, None]
    place = out + token.to(tl.int64)[:, None] * rows + row[None, :]
    tl.store(place, total.to(out.dtype.element_ty), mask=here[:, None] & there[None, :])
