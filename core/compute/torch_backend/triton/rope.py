# ruff: noqa: ANN001, ANN201, ANN202, N803 - a kernel's arguments are pointers and scalars of Triton, its constants are in capitals
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,misc"
"""Rotating queries and keys, and writing keys and values into their slots: one pass over what the projection gave.

A head's values are rotated in pairs. Where the two of a pair lie depends on the style of the model, and on that alone.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from core.compute.torch_backend.attention import PagedKV
from core.compute.torch_backend.triton.step import Step
from core.interfaces.model import DecoderSpec


def rotate_and_write(heads: Tensor, kv: PagedKV, layer: int, step: Step) -> Tensor:
    """heads [T, q_width + 2 * kv_width]: q, then k, then v -> the rotated q [T, q_width]"""
    spec, tokens = kv.spec, len(heads)
    q = torch.empty((tokens, spec.q_width), dtype=heads.dtype, device=heads.device)
    pairs = heads.shape[1] // 2
    _rotate_and_write[(tokens,)](
        heads, q, *targets(kv, layer, step), PAIRS=triton.next_power_of_2(pairs), **constants(spec), num_warps=4
    )
    return q


def targets(kv: PagedKV, layer: int, step: Step) -> tuple[Tensor, ...]:
    return kv.keys[layer], kv.values[layer], torch.view_as_real(kv.turns), step.positions, step.slots


def constants(spec: DecoderSpec) -> dict[str, int | bool]:
    return {
        "Q_WIDTH": spec.q_width,
        "KV_WIDTH": spec.kv_width,
        "DIM": spec.head_dim,
        "ADJACENT": spec.rope_style == "interleaved",
    }


@triton.jit
def first_of(pair, DIM: tl.constexpr, ADJACENT: tl.constexpr):
    """Where the first of a pair lies in [q, k, v]."""
    if ADJACENT:
        return 2 * pair
    return pair // (DIM // 2) * DIM + pair % (DIM // 2)


@triton.jit
def second_of(pair, DIM: tl.constexpr, ADJACENT: tl.constexpr):
    if ADJACENT:
        return 2 * pair + 1
    return pair // (DIM // 2) * DIM + pair % (DIM // 2) + DIM // 2


@triton.jit
def store_rotated(a, b, token, is_token, pair, q, keys, values, turns, positions, slots,
                  Q_WIDTH: tl.constexpr, KV_WIDTH: tl.constexpr, DIM: tl.constexpr, ADJACENT: tl.constexpr):  # fmt: skip
    """a, b [tokens, pairs] float32: the firsts and the seconds of these pairs, rotated and put where they belong."""
    position = tl.load(positions + token, mask=is_token, other=0).to(tl.int64)
    slot = tl.load(slots + token, mask=is_token, other=-1).to(tl.int64)
    first = first_of(pair, DIM, ADJACENT)
    second = second_of(pair, DIM, ADJACENT)
    is_q = first < Q_WIDTH
    is_k = (first >= Q_WIDTH) & (first < Q_WIDTH + KV_WIDTH)
    is_v = (first >= Q_WIDTH + KV_WIDTH) & (first < Q_WIDTH + 2 * KV_WIDTH)
    turn = position[:, None] * DIM + 2 * (pair % (DIM // 2))[None, :]
    is_turned = is_token[:, None] & (is_q | is_k)[None, :]
    cos = tl.load(turns + turn, mask=is_turned, other=1.0)
    sin = tl.load(turns + turn + 1, mask=is_turned, other=0.0)
    x = a * cos - b * sin
    y = a * sin + b * cos
    q_row = q + token.to(tl.int64)[:, None] * Q_WIDTH
    to_q = is_token[:, None] & is_q[None, :]
    tl.store(q_row + first[None, :], x, mask=to_q)
    tl.store(q_row + second[None, :], y, mask=to_q)
    is_kept = (is_token & (slot >= 0))[:, None]
    k_row = keys + slot[:, None] * KV_WIDTH - Q_WIDTH
    tl.store(k_row + first[None, :], x, mask=is_kept & is_k[None, :])
    tl.store(k_row + second[None, :], y, mask=is_kept & is_k[None, :])
    v_row = values + slot[:, None] * KV_WIDTH - (Q_WIDTH + KV_WIDTH)
    tl.store(v_row + first[None, :], a, mask=is_kept & is_v[None, :])
    tl.store(v_row + second[None, :], b, mask=is_kept & is_v[None, :])


@triton.jit
def _rotate_and_write(heads, q, keys, values, turns, positions, slots, PAIRS: tl.constexpr,
                      Q_WIDTH: tl.constexpr, KV_WIDTH: tl.constexpr, DIM: tl.constexpr, ADJACENT: tl.constexpr):  # fmt: skip
    token = tl.program_id(0) + tl.arange(0, 1)
    pair = tl.arange(0, PAIRS)
    mask = (first_of(pair, DIM, ADJACENT) < Q_WIDTH + 2 * KV_WIDTH)[None, :]
    row = heads + token.to(tl.int64)[:, None] * (Q_WIDTH + 2 * KV_WIDTH)
    a = tl.load(row + first_of(pair, DIM, ADJACENT)[None, :], mask=mask, other=0.0).to(tl.float32)
    b = tl.load(row + second_of(pair, DIM, ADJACENT)[None, :], mask=mask, other=0.0).to(tl.float32)
    store_rotated(a, b, token, token >= 0, pair, q, keys, values, turns, positions, slots, Q_WIDTH, KV_WIDTH, DIM, ADJACENT)
