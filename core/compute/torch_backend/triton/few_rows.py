# ruff: noqa: ANN001, ANN202, N803 - a kernel's arguments are pointers and scalars of Triton, its constants are in capitals
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,misc,assignment"
"""Projections of a few tokens, with what stands before and behind them, as one kernel each.

A few tokens cost what reading the weights costs. Every program reads some rows of a weight and all tokens; a norm before the
projection is computed anew by each program, which is cheaper than a kernel of its own.
"""

from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from core.compute.torch_backend.attention import PagedKV
from core.compute.torch_backend.triton import rope
from core.compute.torch_backend.triton.arithmetic import await_kernel_before, let_kernel_behind_start
from core.compute.torch_backend.triton.packed import Reading
from core.compute.torch_backend.triton.products import (
    ahead,
    await_sealed,
    fetched,
    scales,
    summed,
    tiled,
    tiled_pairs,
    token_of,
    unpacked,
)
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
    _qkv[tiling.grid(pairs, len(hidden))](
        hidden, norm, *weight.arrays, q, *rope.targets(kv, layer, step), len(hidden),
        EPS=eps, PAIRS=pairs, **rope.constants(spec), **_how(weight, tiling),
    )  # fmt: skip
    return q


def gate_up(hidden: Tensor, norm: Tensor, eps: float, weight: Reading, tiling: Tiling) -> Tensor:
    """Norm, projection [gate, up], SiLU(gate) * up -> [T, intermediate]"""
    width = weight.outputs // 2
    out = torch.empty((len(hidden), width), dtype=hidden.dtype, device=hidden.device)
    _gate_up[tiling.grid(width, len(hidden))](
        hidden, norm, *weight.arrays, out, len(hidden),
        EPS=eps, OUT=width, **_how(weight, tiling),
    )  # fmt: skip
    return out


def linear_add(x: Tensor, weight: Reading, residual: Tensor, tiling: Tiling) -> Tensor:
    """The residual, the projection added to it in its own memory."""
    _linear_add[tiling.grid(weight.outputs, len(x))](
        x, *weight.arrays, residual, len(x), OUT=weight.outputs, **_how(weight, tiling)
    )
    return residual


def logits(
    hidden: Tensor, rows: Tensor | None, norm: Tensor, eps: float, weight: Reading, number: int, tiling: Tiling
) -> Tensor:
    """Norm and head of these rows -> float32 [number, vocab]"""
    out = torch.empty((number, weight.outputs), dtype=torch.float32, device=hidden.device)
    _logits[tiling.grid(weight.outputs, number)](
        hidden, hidden if rows is None else rows, norm, *weight.arrays, out, number,
        EPS=eps, OUT=weight.outputs, CHOSEN=rows is not None, **_how(weight, tiling),
    )  # fmt: skip
    return out


def _how(weight: Reading, tiling: Tiling) -> dict[str, Any]:
    return weight.constants | tiling.constants | tiling.options


@triton.jit(do_not_specialize=["tokens"])
def _qkv(hidden, norm, weight, more, q, keys, values, turns, positions, slots, tokens,
         EPS: tl.constexpr, IN: tl.constexpr, PAIRS: tl.constexpr, Q_WIDTH: tl.constexpr, KV_WIDTH: tl.constexpr,
         DIM: tl.constexpr, ADJACENT: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr,
         DOT: tl.constexpr, PARTS: tl.constexpr, OVERLAP: tl.constexpr, TILE: tl.constexpr,
         GROUP: tl.constexpr, ROUND: tl.constexpr, EARLY: tl.constexpr):  # fmt: skip
    let_kernel_behind_start(OVERLAP)
    pair = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    first = first_of(pair, DIM, ADJACENT)
    second = second_of(pair, DIM, ADJACENT)
    if DOT:
        tiles, norms = ahead(norm, weight, more, first, 2 * PAIRS, IN, COLUMNS, True, PARTS, TILE, GROUP)
        more_tiles, _ = ahead(norm, weight, more, second, 2 * PAIRS, IN, COLUMNS, False, PARTS, TILE, GROUP)
        await_kernel_before(OVERLAP)
        token = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        a, b = tiled_pairs(
            hidden, token, token < tokens, norm, norms, weight, more, first, second, 2 * PAIRS, tiles, more_tiles,
            EPS, IN, ROWS, OUTPUTS, COLUMNS, PARTS, TILE, GROUP, ROUND,
        )  # fmt: skip
        store_rotated(
            a, b, token, token < tokens, pair, q, keys, values, turns, positions, slots, Q_WIDTH, KV_WIDTH, DIM, ADJACENT
        )
    else:
        tiles, more_tiles = (), ()
        for number in tl.static_range(OUTPUTS):
            pair = tl.program_id(0) * OUTPUTS + number + tl.arange(0, 1)
            first, second = first_of(pair, DIM, ADJACENT), second_of(pair, DIM, ADJACENT)
            tiles = tiles + (fetched(weight, more, first, 2 * PAIRS, IN, COLUMNS, TILE, GROUP),)  # noqa: RUF005 - for Triton
            more_tiles = more_tiles + (fetched(weight, more, second, 2 * PAIRS, IN, COLUMNS, TILE, GROUP),)  # noqa: RUF005
        norms = scales(norm, IN, COLUMNS)
        seal = tl.zeros([1, COLUMNS], tl.int16)
        tiles, seal = unpacked(tiles, seal, hidden.dtype.element_ty, OUTPUTS, (IN + COLUMNS - 1) // COLUMNS, EARLY)
        more_tiles, seal = unpacked(more_tiles, seal, hidden.dtype.element_ty, OUTPUTS, (IN + COLUMNS - 1) // COLUMNS, EARLY)
        await_sealed(seal, EARLY, OVERLAP)
        for row in tl.static_range(ROWS):
            columns, factor = token_of(hidden + row * IN, row < tokens, norms, EPS, IN, COLUMNS, True, ROUND)
            token = row + tl.arange(0, 1)
            for number in tl.static_range(OUTPUTS):
                a = summed(columns, factor, tiles[number], COLUMNS, (IN + COLUMNS - 1) // COLUMNS)
                b = summed(columns, factor, more_tiles[number], COLUMNS, (IN + COLUMNS - 1) // COLUMNS)
                pair = tl.program_id(0) * OUTPUTS + number + tl.arange(0, 1)
                store_rotated(
                    a[None, :], b[None, :], token, token < tokens, pair, q, keys, values, turns, positions, slots,
                    Q_WIDTH, KV_WIDTH, DIM, ADJACENT,
                )  # fmt: skip


@triton.jit(do_not_specialize=["tokens"])
def _gate_up(hidden, norm, weight, more, out, tokens, EPS: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr,
             ROWS: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr, DOT: tl.constexpr,
             PARTS: tl.constexpr, OVERLAP: tl.constexpr, TILE: tl.constexpr,
             GROUP: tl.constexpr, ROUND: tl.constexpr, EARLY: tl.constexpr):  # fmt: skip
    let_kernel_behind_start(OVERLAP)
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    if DOT:
        gates, norms = ahead(norm, weight, more, output, OUT, IN, COLUMNS, True, PARTS, TILE, GROUP)
        ups, _ = ahead(norm, weight, more, output + OUT, 2 * OUT, IN, COLUMNS, False, PARTS, TILE, GROUP)
        await_kernel_before(OVERLAP)
        token = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        gate, up = tiled_pairs(
            hidden, token, token < tokens, norm, norms, weight, more, output, output + OUT, 2 * OUT, gates, ups,
            EPS, IN, ROWS, OUTPUTS, COLUMNS, PARTS, TILE, GROUP, ROUND,
        )  # fmt: skip
        mask = (token < tokens)[:, None] & (output < OUT)[None, :]
        tl.store(out + token[:, None] * OUT + output[None, :], gate / (1.0 + tl.exp(-gate)) * up, mask=mask)
    else:
        gates, ups = (), ()
        for number in tl.static_range(OUTPUTS):
            output = tl.program_id(0) * OUTPUTS + number + tl.arange(0, 1)
            gates = gates + (fetched(weight, more, output, OUT, IN, COLUMNS, TILE, GROUP),)  # noqa: RUF005 - for Triton
            ups = ups + (fetched(weight, more, output + OUT, 2 * OUT, IN, COLUMNS, TILE, GROUP),)  # noqa: RUF005
        norms = scales(norm, IN, COLUMNS)
        seal = tl.zeros([1, COLUMNS], tl.int16)
        gates, seal = unpacked(gates, seal, hidden.dtype.element_ty, OUTPUTS, (IN + COLUMNS - 1) // COLUMNS, EARLY)
        ups, seal = unpacked(ups, seal, hidden.dtype.element_ty, OUTPUTS, (IN + COLUMNS - 1) // COLUMNS, EARLY)
        await_sealed(seal, EARLY, OVERLAP)
        for row in tl.static_range(ROWS):
            columns, factor = token_of(hidden + row * IN, row < tokens, norms, EPS, IN, COLUMNS, True, ROUND)
            for number in tl.static_range(OUTPUTS):
                gate = summed(columns, factor, gates[number], COLUMNS, (IN + COLUMNS - 1) // COLUMNS)
                up = summed(columns, factor, ups[number], COLUMNS, (IN + COLUMNS - 1) // COLUMNS)
                output = tl.program_id(0) * OUTPUTS + number + tl.arange(0, 1)
                mixed = gate / (1.0 + tl.exp(-gate)) * up
                tl.store(out + row * OUT + output, mixed, mask=(output < OUT) & (row < tokens))


@triton.jit(do_not_specialize=["tokens"])
def _linear_add(x, weight, more, residual, tokens, IN: tl.constexpr, OUT: tl.constexpr,
                ROWS: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr, DOT: tl.constexpr,
                PARTS: tl.constexpr, OVERLAP: tl.constexpr, TILE: tl.constexpr,
                GROUP: tl.constexpr, ROUND: tl.constexpr, EARLY: tl.constexpr):  # fmt: skip
    let_kernel_behind_start(OVERLAP)
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    if DOT:
        tiles, _ = ahead(x, weight, more, output, OUT, IN, COLUMNS, False, PARTS, TILE, GROUP)
        await_kernel_before(OVERLAP)
        token = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        is_token = token < tokens
        total = tiled(
            x, token, is_token, x, (), weight, more, output, OUT, tiles, 0.0, IN, False, ROWS, OUTPUTS, COLUMNS, PARTS,
            TILE, GROUP, ROUND,
        )  # fmt: skip
        place = residual + token[:, None] * OUT + output[None, :]
        mask = is_token[:, None] & (output < OUT)[None, :]
        tl.store(place, total + tl.load(place, mask=mask, other=0.0).to(tl.float32), mask=mask)
    else:
        tiles = ()
        for number in tl.static_range(OUTPUTS):
            output = tl.program_id(0) * OUTPUTS + number + tl.arange(0, 1)
            tiles = tiles + (fetched(weight, more, output, OUT, IN, COLUMNS, TILE, GROUP),)  # noqa: RUF005 - for Triton
        seal = tl.zeros([1, COLUMNS], tl.int16)
        tiles, seal = unpacked(tiles, seal, x.dtype.element_ty, OUTPUTS, (IN + COLUMNS - 1) // COLUMNS, EARLY)
        await_sealed(seal, EARLY, OVERLAP)
        for row in tl.static_range(ROWS):
            columns, factor = token_of(x + row * IN, row < tokens, (), 0.0, IN, COLUMNS, False, ROUND)
            for number in tl.static_range(OUTPUTS):
                output = tl.program_id(0) * OUTPUTS + number + tl.arange(0, 1)
                mask = (output < OUT) & (row < tokens)
                before = tl.load(residual + row * OUT + output, mask=mask, other=0.0).to(tl.float32)
                total = summed(columns, factor, tiles[number], COLUMNS, (IN + COLUMNS - 1) // COLUMNS)
                tl.store(residual + row * OUT + output, total + before, mask=mask)


@triton.jit(do_not_specialize=["count"])
def _logits(hidden, rows, norm, weight, more, out, count, EPS: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr,
            CHOSEN: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr, DOT: tl.constexpr,
            PARTS: tl.constexpr, OVERLAP: tl.constexpr, TILE: tl.constexpr, GROUP: tl.constexpr,
            ROUND: tl.constexpr, EARLY: tl.constexpr):  # fmt: skip
    let_kernel_behind_start(OVERLAP)
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    if DOT:
        tiles, norms = ahead(norm, weight, more, output, OUT, IN, COLUMNS, True, PARTS, TILE, GROUP)
        await_kernel_before(OVERLAP)
        chosen = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        is_row = chosen < count
        row = chosen
        if CHOSEN:
            row = tl.load(rows + chosen, mask=is_row, other=0)
        total = tiled(
            hidden, row, is_row, norm, norms, weight, more, output, OUT, tiles, EPS, IN, True, ROWS, OUTPUTS, COLUMNS,
            PARTS, TILE, GROUP, ROUND,
        )  # fmt: skip
        place = out + chosen.to(tl.int64)[:, None] * OUT + output[None, :]
        tl.store(place, total, mask=is_row[:, None] & (output < OUT)[None, :])
    else:
        tiles = ()
        for number in tl.static_range(OUTPUTS):
            output = tl.program_id(0) * OUTPUTS + number + tl.arange(0, 1)
            tiles = tiles + (fetched(weight, more, output, OUT, IN, COLUMNS, TILE, GROUP),)  # noqa: RUF005 - for Triton
        norms = scales(norm, IN, COLUMNS)
        seal = tl.zeros([1, COLUMNS], tl.int16)
        tiles, seal = unpacked(tiles, seal, hidden.dtype.element_ty, OUTPUTS, (IN + COLUMNS - 1) // COLUMNS, EARLY)
        await_sealed(seal, EARLY, OVERLAP)
        for chosen in tl.static_range(ROWS):
            row = chosen
            if CHOSEN:
                row = tl.load(rows + chosen, mask=chosen < count, other=0)
            columns, factor = token_of(hidden + row * IN, chosen < count, norms, EPS, IN, COLUMNS, True, ROUND)
            for number in tl.static_range(OUTPUTS):
                output = tl.program_id(0) * OUTPUTS + number + tl.arange(0, 1)
                total = summed(columns, factor, tiles[number], COLUMNS, (IN + COLUMNS - 1) // COLUMNS)
                tl.store(out + chosen * OUT + output, total, mask=(output < OUT) & (chosen < count))
