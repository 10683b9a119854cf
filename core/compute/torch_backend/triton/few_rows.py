# ruff: noqa: ANN001, ANN202, N803 - a kernel's arguments are pointers and scalars of Triton, its constants are in capitals
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,misc"
"""Projections of a few tokens, with what stands before and behind them, as one kernel each.

A few tokens cost what reading the weights costs. Every program reads some rows of a weight and all tokens; a norm before the
projection is computed anew by each program, which is cheaper than a kernel of its own.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from core.compute.torch_backend.attention import PagedKV
from core.compute.torch_backend.triton import rope
from core.compute.torch_backend.triton.arithmetic import await_kernel_before, multiply
from core.compute.torch_backend.triton.packed import Reading
from core.compute.torch_backend.triton.rope import first_of, second_of, store_rotated
from core.compute.torch_backend.triton.step import Step
from core.compute.torch_backend.triton.tiling import Tiling


def qkv(
    hidden: Tensor, norm: Tensor, eps: float, weight: Reading, kv: PagedKV, layer: int, step: Step, tiling: Tiling
) -> Tensor:
    """Norm, projection, rope; K and V into their slots -> q [T, q_width]"""
    spec = kv.spec
    q = torch.empty((len(hidden), spec.q_width), dtype=hidden.dtype, device=hidden.device)
    pairs = weight.outputs // 2
    _qkv[(triton.cdiv(pairs, tiling.outputs),)](
        hidden, norm, *weight.arrays, q, *rope.targets(kv, layer, step), len(hidden),
        EPS=eps, **weight.constants, PAIRS=pairs, **rope.constants(spec), **tiling.constants, **tiling.options,
    )  # fmt: skip
    return q


def gate_up(hidden: Tensor, norm: Tensor, eps: float, weight: Reading, tiling: Tiling) -> Tensor:
    """Norm, projection [gate, up], SiLU(gate) * up -> [T, intermediate]"""
    width = weight.outputs // 2
    out = torch.empty((len(hidden), width), dtype=hidden.dtype, device=hidden.device)
    _gate_up[(triton.cdiv(width, tiling.outputs),)](
        hidden, norm, *weight.arrays, out, len(hidden),
        EPS=eps, **weight.constants, OUT=width, **tiling.constants, **tiling.options,
    )  # fmt: skip
    return out


def linear_add(x: Tensor, weight: Reading, residual: Tensor, tiling: Tiling) -> Tensor:
    """The residual, the projection added to it in its own memory."""
    _linear_add[(triton.cdiv(weight.outputs, tiling.outputs),)](
        x, *weight.arrays, residual, len(x), **weight.constants, OUT=weight.outputs, **tiling.constants, **tiling.options
    )
    return residual


def logits(
    hidden: Tensor, rows: Tensor | None, norm: Tensor, eps: float, weight: Reading, number: int, tiling: Tiling
) -> Tensor:
    """Norm and head of these rows -> float32 [number, vocab]"""
    out = torch.empty((number, weight.outputs), dtype=torch.float32, device=hidden.device)
    _logits[(triton.cdiv(weight.outputs, tiling.outputs),)](
        hidden, hidden if rows is None else rows, norm, *weight.arrays, out, number,
        EPS=eps, **weight.constants, OUT=weight.outputs, CHOSEN=rows is not None, **tiling.constants, **tiling.options,
    )  # fmt: skip
    return out


@triton.jit
def _inverse_rms(x, row, is_row, EPS: tl.constexpr, IN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    squares = tl.zeros([ROWS], tl.float32)
    for start in tl.static_range(0, IN, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        mask = is_row[:, None] & (column < IN)[None, :]
        values = tl.load(x + row[:, None] * IN + column[None, :], mask=mask, other=0.0).to(tl.float32)
        squares += tl.sum(values * values, 1)
    return tl.rsqrt(squares / IN + EPS)


@triton.jit
def _input(x, row, is_row, column, norm, inverse, IN: tl.constexpr, NORMED: tl.constexpr):
    """[rows, columns], rounded as a norm's kernel of its own would round it."""
    values = tl.load(x + row[:, None] * IN + column[None, :], mask=is_row[:, None] & (column < IN)[None, :], other=0.0)
    if NORMED:
        scale = tl.load(norm + column, mask=column < IN, other=0.0).to(tl.float32)
        values = (values.to(tl.float32) * inverse[:, None] * scale[None, :]).to(values.dtype)
    return values


@triton.jit
def _product(values, tile, total, DOT: tl.constexpr):
    """total [rows, outputs] + values tile^T"""
    if DOT:
        return multiply(values, tl.trans(tile.to(values.dtype)), total)
    return total + tl.sum(values.to(tl.float32)[:, None, :] * tile.to(values.dtype).to(tl.float32)[None, :, :], 2)


@triton.jit
def _project(x, row, is_row, norm, weight, more, output, outputs, EPS: tl.constexpr, IN: tl.constexpr,
             NORMED: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr, DOT: tl.constexpr,
             OVERLAP: tl.constexpr, TILE: tl.constexpr, GROUP: tl.constexpr):  # fmt: skip
    """float32 [rows, outputs]"""
    total = tl.zeros([ROWS, OUTPUTS], tl.float32)
    inverse = tl.zeros([ROWS], tl.float32)
    if IN <= COLUMNS:
        column = tl.arange(0, COLUMNS)
        tile = TILE(weight, more, output, output < outputs, 0, IN, COLUMNS, GROUP)  # under way while the kernel before ends
        await_kernel_before(OVERLAP)
        if NORMED:
            inverse = _inverse_rms(x, row, is_row, EPS, IN, ROWS, COLUMNS)
        total = _product(_input(x, row, is_row, column, norm, inverse, IN, NORMED), tile, total, DOT)
    else:
        await_kernel_before(OVERLAP)
        if NORMED:
            inverse = _inverse_rms(x, row, is_row, EPS, IN, ROWS, COLUMNS)
        for start in range(0, IN, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            tile = TILE(weight, more, output, output < outputs, start, IN, COLUMNS, GROUP)
            total = _product(_input(x, row, is_row, column, norm, inverse, IN, NORMED), tile, total, DOT)
    return total


@triton.jit
def _project_pairs(x, row, is_row, norm, weight, more, first, second, outputs, EPS: tl.constexpr, IN: tl.constexpr,
                   ROWS: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr, DOT: tl.constexpr,
                   OVERLAP: tl.constexpr, TILE: tl.constexpr, GROUP: tl.constexpr):  # fmt: skip
    """Two of float32 [rows, outputs], of normed rows."""
    a = tl.zeros([ROWS, OUTPUTS], tl.float32)
    b = tl.zeros([ROWS, OUTPUTS], tl.float32)
    if IN <= COLUMNS:
        column = tl.arange(0, COLUMNS)
        tile = TILE(weight, more, first, first < outputs, 0, IN, COLUMNS, GROUP)
        tile_b = TILE(weight, more, second, second < outputs, 0, IN, COLUMNS, GROUP)
        await_kernel_before(OVERLAP)
        inverse = _inverse_rms(x, row, is_row, EPS, IN, ROWS, COLUMNS)
        values = _input(x, row, is_row, column, norm, inverse, IN, True)
        a = _product(values, tile, a, DOT)
        b = _product(values, tile_b, b, DOT)
    else:
        await_kernel_before(OVERLAP)
        inverse = _inverse_rms(x, row, is_row, EPS, IN, ROWS, COLUMNS)
        for start in range(0, IN, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            values = _input(x, row, is_row, column, norm, inverse, IN, True)
            a = _product(values, TILE(weight, more, first, first < outputs, start, IN, COLUMNS, GROUP), a, DOT)
            b = _product(values, TILE(weight, more, second, second < outputs, start, IN, COLUMNS, GROUP), b, DOT)
    return a, b


@triton.jit(do_not_specialize=["tokens"])
def _qkv(hidden, norm, weight, more, q, keys, values, turns, positions, slots, tokens,
         EPS: tl.constexpr, IN: tl.constexpr, PAIRS: tl.constexpr, Q_WIDTH: tl.constexpr, KV_WIDTH: tl.constexpr,
         DIM: tl.constexpr, ADJACENT: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr,
         DOT: tl.constexpr, OVERLAP: tl.constexpr, TILE: tl.constexpr, GROUP: tl.constexpr):  # fmt: skip
    token = tl.arange(0, ROWS)
    pair = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    first = first_of(pair, DIM, ADJACENT)
    second = second_of(pair, DIM, ADJACENT)
    a, b = _project_pairs(
        hidden, token, token < tokens, norm, weight, more, first, second, 2 * PAIRS,
        EPS, IN, ROWS, OUTPUTS, COLUMNS, DOT, OVERLAP, TILE, GROUP,
    )  # fmt: skip
    store_rotated(a, b, token, token < tokens, pair, q, keys, values, turns, positions, slots, Q_WIDTH, KV_WIDTH, DIM, ADJACENT)


@triton.jit(do_not_specialize=["tokens"])
def _gate_up(hidden, norm, weight, more, out, tokens, EPS: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr,
             ROWS: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr, DOT: tl.constexpr,
             OVERLAP: tl.constexpr, TILE: tl.constexpr, GROUP: tl.constexpr):  # fmt: skip
    token = tl.arange(0, ROWS)
    is_token = token < tokens
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    gate, up = _project_pairs(
        hidden, token, is_token, norm, weight, more, output, output + OUT, 2 * OUT,
        EPS, IN, ROWS, OUTPUTS, COLUMNS, DOT, OVERLAP, TILE, GROUP,
    )  # fmt: skip
    mixed = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + token[:, None] * OUT + output[None, :], mixed, mask=is_token[:, None] & (output < OUT)[None, :])


@triton.jit(do_not_specialize=["tokens"])
def _linear_add(x, weight, more, residual, tokens, IN: tl.constexpr, OUT: tl.constexpr,
                ROWS: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr, DOT: tl.constexpr,
                OVERLAP: tl.constexpr, TILE: tl.constexpr, GROUP: tl.constexpr):  # fmt: skip
    token = tl.arange(0, ROWS)
    is_token = token < tokens
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    total = _project(
        x, token, is_token, x, weight, more, output, OUT, 0.0, IN, False, ROWS, OUTPUTS, COLUMNS, DOT, OVERLAP, TILE, GROUP
    )
    place = residual + token[:, None] * OUT + output[None, :]
    mask = is_token[:, None] & (output < OUT)[None, :]
    tl.store(place, total + tl.load(place, mask=mask, other=0.0).to(tl.float32), mask=mask)


@triton.jit(do_not_specialize=["number"])
def _logits(hidden, rows, norm, weight, more, out, number, EPS: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr,
            CHOSEN: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr, DOT: tl.constexpr,
            OVERLAP: tl.constexpr, TILE: tl.constexpr, GROUP: tl.constexpr):  # fmt: skip
    chosen = tl.arange(0, ROWS)
    is_row = chosen < number
    row = chosen
    if CHOSEN:
        row = tl.load(rows + chosen, mask=is_row, other=0)
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    total = _project(
        hidden, row, is_row, norm, weight, more, output, OUT, EPS, IN, True, ROWS, OUTPUTS, COLUMNS, DOT, OVERLAP, TILE, GROUP
    )
    place = out + chosen.to(tl.int64)[:, None] * OUT + output[None, :]
    tl.store(place, total, mask=is_row[:, None] & (output < OUT)[None, :])
