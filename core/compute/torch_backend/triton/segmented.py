# ruff: noqa: ANN001, ANN202, N803 - a kernel's arguments are pointers and scalars of Triton, its constants are in capitals
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,misc"
"""Attention whose result for a token hangs on its own context alone: not on who else is in the step, nor on how many of its
own sequence's tokens are computed with it.

Keys are taken in segments that begin at multiples of ``SEGMENT``, each from nothing, and segments are put together in order. A
program has one or several of them: how many changes where sums are kept, and not what is added to what. Tokens that decode are
blocks of queries with one query in them, so that a token is computed alike as part of a prompt, behind a cached one, and alone.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from core.compute.torch_backend.triton.arithmetic import bound, multiply
from core.compute.torch_backend.triton.attention import (
    ARRIVALS,
    constants,
    queries_in_tile,
    rows_of,
    scale,
    slots_of,
    splits_of,
)
from core.compute.torch_backend.triton.step import Step
from core.interfaces.model import DecoderSpec

SEGMENT = 256
KEYS = 32  # at a time


class SegmentedAttention:
    def __init__(self, device: torch.device, programs: int) -> None:
        """``programs``: about as many fill the device."""
        self._programs = programs
        self._arrivals = torch.zeros(ARRIVALS, dtype=torch.int32, device=device)  # zero again after each launch

    def __call__(self, q: Tensor, keys: Tensor, values: Tensor, step: Step, spec: DecoderSpec) -> Tensor:
        """q [T, q_width]; keys, values [pages, page, kv_heads, head_dim] -> [T, q_width]"""
        out = torch.empty_like(q)
        layout = step.layout
        if layout.decodes:
            longest = layout.pages * keys.shape[1]
            splits = splits_of(layout.decodes * spec.num_kv_heads, longest, SEGMENT, self._programs)
            self._launch(q, keys, values, step, spec, out, layout.decodes, splits, True)
        if layout.tiles:
            self._launch(q, keys, values, step, spec, out, layout.tiles, 1, False)
        return out

    def _launch(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        step: Step,
        spec: DecoderSpec,
        out: Tensor,
        tiles: int,
        splits: int,
        decodes: bool,
    ) -> None:
        group, page = spec.num_heads // spec.num_kv_heads, keys.shape[1]
        segments = -(-step.layout.pages * page // SEGMENT)
        mixed = scores = self._arrivals.view(torch.float32)  # of the type that the kernel is made for; nothing is written there
        if splits > 1:
            shape = (tiles, spec.num_kv_heads, segments, group)
            mixed = torch.empty((*shape, spec.head_dim), dtype=torch.float32, device=q.device)
            scores = torch.empty((*shape, 2), dtype=torch.float32, device=q.device)
        _segmented[(tiles, spec.num_kv_heads, splits)](
            q,
            keys,
            values,
            step.page_table,
            step.context_lens,
            step.query_starts,
            step.tiles,
            out,
            mixed,
            scores,
            self._arrivals,
            step.layout.pages,
            segments,
            int(decodes),
            SCALE=scale(spec),
            **constants(spec, page),
            HEADS=rows_of(group),
            QUERIES=queries_in_tile(spec, q.dtype),
            KEYS=KEYS,
            SEGMENT=SEGMENT,
            num_warps=4,
            num_stages=3 if q.element_size() == 2 else 2,
            enable_fp_fusion=False,  # else a compiler decides anew, for each place, which of two products it rounds
        )


@triton.jit
def _level(best):
    """What exponents are taken from: of a row that has seen no key yet, 0."""
    return tl.where(best == float("-inf"), 0.0, best)


@triton.jit
def _joined(best, total, mixed, peak, weight, sums):
    """What came of the segments before, and of the one that follows."""
    highest = tl.maximum(best, peak)
    shrink = tl.exp2(best - _level(highest))
    grow = tl.exp2(peak - _level(highest))
    return highest, total * shrink + weight * grow, mixed * shrink[:, None] + sums * grow[:, None]


@triton.jit(do_not_specialize=["segments", "decodes"])
def _segmented(q, keys, values, tables, lengths, starts, tile_words, out, mixed_parts, score_parts, arrivals, pages, segments,
               decodes, SCALE: tl.constexpr, PAGE: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr,
               DIM: tl.constexpr, WIDE: tl.constexpr, HEADS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
               SEGMENT: tl.constexpr):  # fmt: skip
    """Rows are (query, head), a query's heads beside each other. ``decodes``: tile t is the one token of sequence t."""
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    sequence = tile
    begin = tile
    end = tile + 1
    if decodes == 0:
        sequence = tl.load(tile_words + 2 * tile)
        begin = tl.load(tile_words + 2 * tile + 1)
        end = tl.load(starts + tl.maximum(sequence, 0) + 1)
    if sequence < 0:
        return
    length = tl.load(lengths + sequence)
    rows = tl.arange(0, QUERIES * HEADS)
    dims = tl.arange(0, WIDE)
    is_dim = (dims < DIM)[None, :]
    token = begin + rows // HEADS
    head = rows % HEADS
    is_row = (token < end) & (head < GROUP)
    mask = is_row[:, None] & is_dim
    own = ((token.to(tl.int64) * KV_HEADS + kv_head) * GROUP + head)[:, None] * DIM + dims[None, :]
    wanted = tl.load(q + own, mask=mask, other=0.0)
    seen = token + (length - end)
    last = tl.minimum(begin + QUERIES, end) + (length - end)
    table = tables + sequence.to(tl.int64) * pages
    number = tl.cdiv(last, SEGMENT)
    each = tl.maximum(tl.cdiv(number, tl.num_programs(2)), 1)
    first = split * each
    parts = tl.cdiv(number, each)  # programs that have any
    pair = tile.to(tl.int64) * KV_HEADS + kv_head
    best = tl.full([QUERIES * HEADS], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES * HEADS], tl.float32)
    mixed = tl.zeros([QUERIES * HEADS, WIDE], tl.float32)
    for segment in range(bound(first), bound(tl.minimum(first + each, number))):
        peak = tl.full([QUERIES * HEADS], float("-inf"), tl.float32)
        weight = tl.zeros([QUERIES * HEADS], tl.float32)
        sums = tl.zeros([QUERIES * HEADS, WIDE], tl.float32)
        for start in range(segment * SEGMENT, bound(tl.minimum(segment * SEGMENT + SEGMENT, last)), KEYS):
            places = start + tl.arange(0, KEYS)
            is_key = places < last
            where = (slots_of(table, places, is_key, PAGE) * KV_HEADS + kv_head)[:, None] * DIM + dims[None, :]
            k = tl.load(keys + where, mask=is_key[:, None] & is_dim, other=0.0)
            v = tl.load(values + where, mask=is_key[:, None] & is_dim, other=0.0)
            scores = multiply(wanted, tl.trans(k), tl.zeros([QUERIES * HEADS, KEYS], tl.float32)) * SCALE
            scores = tl.where(is_key[None, :] & (places[None, :] <= seen[:, None]), scores, float("-inf"))
            highest = tl.maximum(peak, tl.max(scores, 1))
            weights = tl.exp2(scores - _level(highest)[:, None])
            shrink = tl.exp2(peak - _level(highest))
            weight = weight * shrink + tl.sum(weights, 1)
            sums = multiply(weights.to(v.dtype), v, sums * shrink[:, None])
            peak = highest
        if parts > 1:
            of_part = (pair * segments + segment) * GROUP + rows  # a query alone: its rows are its heads
            tl.store(mixed_parts + of_part[:, None] * DIM + dims[None, :], sums, mask=mask, cache_modifier=".cg")
            tl.store(score_parts + 2 * of_part, peak, mask=is_row, cache_modifier=".cg")
            tl.store(score_parts + 2 * of_part + 1, weight, mask=is_row, cache_modifier=".cg")
        best, total, mixed = _joined(best, total, mixed, peak, weight, sums)
    if parts <= 1:
        if split == 0:
            tl.store(out + own, mixed / tl.where(total > 0.0, total, 1.0)[:, None], mask=mask)
    elif split < parts:
        tl.debug_barrier()  # what all threads of this program stored goes before its arrival
        if tl.atomic_add(arrivals + pair, 1, sem="acq_rel", scope="gpu") == parts - 1:
            tl.debug_barrier()
            best = tl.full([QUERIES * HEADS], float("-inf"), tl.float32)
            total = tl.zeros([QUERIES * HEADS], tl.float32)
            mixed = tl.zeros([QUERIES * HEADS, WIDE], tl.float32)
            for segment in range(0, bound(number)):
                of_part = (pair * segments + segment) * GROUP + rows
                peak = tl.load(score_parts + 2 * of_part, mask=is_row, other=float("-inf"), cache_modifier=".cg")
                weight = tl.load(score_parts + 2 * of_part + 1, mask=is_row, other=0.0, cache_modifier=".cg")
                place = mixed_parts + of_part[:, None] * DIM + dims[None, :]
                sums = tl.load(place, mask=mask, other=0.0, cache_modifier=".cg")
                best, total, mixed = _joined(best, total, mixed, peak, weight, sums)
            tl.store(out + own, mixed / tl.where(total > 0.0, total, 1.0)[:, None], mask=mask)
            tl.store(arrivals + pair, 0)
