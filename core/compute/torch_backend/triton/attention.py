# ruff: noqa: ANN001, ANN202, N803 - a kernel's arguments are pointers and scalars of Triton, its constants are in capitals
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,misc"
"""Attention over pages: page tables and lengths are read on the device, sums run over blocks of keys and are never stored.

All query heads of a kv head are rows of one program, so that a key is read once for them all. A sequence that decodes is
divided among ``splits`` programs; whichever ends last puts their results together.
"""

from __future__ import annotations

import math

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from core.compute.torch_backend.triton.arithmetic import await_kernel_before, bound, multiply
from core.compute.torch_backend.triton.step import Step
from core.interfaces.model import DecoderSpec

ROWS = 16  # the fewest of a tensor core's tile
TILE_ROWS = {2: 128, 4: 32}  # of a block of queries, the heads of a kv head included, by the bytes of a value
SHORTEST = 128  # keys that are worth a program of their own
MOST_SPLITS = 64
ARRIVALS = 1 << 16  # counters: a sequence's kv head takes one


def rows_of(group: int) -> int:
    """What the heads of a kv head are filled up to."""
    return triton.next_power_of_2(group)  # type: ignore[no-any-return, unused-ignore]


def queries_in_tile(spec: DecoderSpec, dtype: torch.dtype) -> int:
    return max(1, TILE_ROWS[dtype.itemsize] // rows_of(spec.num_heads // spec.num_kv_heads))


def splits_of(pairs: int, longest: int, programs: int) -> int:
    """Among how many programs each of ``pairs`` (sequence, kv head) is divided, when about ``programs`` fill the device."""
    if pairs > ARRIVALS:
        return 1
    return max(1, min(programs // pairs, -(-longest // SHORTEST), MOST_SPLITS))


class Attention:
    def __init__(self, device: torch.device, programs: int, overlap: bool = False) -> None:
        self._programs = programs
        self._overlap = overlap
        self._arrivals = torch.zeros(ARRIVALS, dtype=torch.int32, device=device)  # zero again after each launch

    def __call__(self, q: Tensor, keys: Tensor, values: Tensor, step: Step, spec: DecoderSpec) -> Tensor:
        """q [T, q_width]; keys, values [pages, page, kv_heads, head_dim] -> [T, q_width]"""
        out = torch.empty_like(q)
        if step.layout.decodes:
            self._decodes(q, keys, values, step, spec, out)
        if step.layout.tiles:
            self._prompts(q, keys, values, step, spec, out)
        return out

    def _decodes(self, q: Tensor, keys: Tensor, values: Tensor, step: Step, spec: DecoderSpec, out: Tensor) -> None:
        sequences, page = step.layout.decodes, keys.shape[1]
        splits = splits_of(sequences * spec.num_kv_heads, step.layout.pages * page, self._programs)
        overlap = self._overlap and step.layout.tokens == 1
        mixed, scores = out, out
        if splits > 1:
            shape = (sequences, spec.num_kv_heads, splits, spec.num_heads // spec.num_kv_heads)
            mixed = torch.empty((*shape, spec.head_dim), dtype=torch.float32, device=q.device)
            scores = torch.empty((*shape, 2), dtype=torch.float32, device=q.device)
        _decode[(sequences, spec.num_kv_heads, splits)](
            q,
            keys,
            values,
            step.page_table,
            step.context_lens,
            out,
            mixed,
            scores,
            self._arrivals,
            step.layout.pages,
            SCALE=_scale(spec),
            **_constants(spec, page),
            ROWS=max(ROWS, rows_of(spec.num_heads // spec.num_kv_heads)),
            FEWEST=SHORTEST,
            KEYS=64,
            OVERLAP=overlap,
            num_warps=4,
            num_stages=2,
            launch_pdl=overlap,
        )

    def _prompts(self, q: Tensor, keys: Tensor, values: Tensor, step: Step, spec: DecoderSpec, out: Tensor) -> None:
        heads = rows_of(spec.num_heads // spec.num_kv_heads)
        narrow = q.element_size() == 2
        _prompt[(step.layout.tiles, spec.num_kv_heads)](
            q,
            keys,
            values,
            step.page_table,
            step.context_lens,
            step.query_starts,
            step.tiles,
            out,
            step.layout.pages,
            SCALE=_scale(spec),
            **_constants(spec, keys.shape[1]),
            HEADS=heads,
            QUERIES=queries_in_tile(spec, q.dtype),
            KEYS=64 if narrow else 32,
            num_warps=8 if narrow else 4,
            num_stages=2,
        )


def _scale(spec: DecoderSpec) -> float:
    """Exponentials are powers of two."""
    return math.log2(math.e) / math.sqrt(spec.head_dim)


def _constants(spec: DecoderSpec, page: int) -> dict[str, int]:
    return {
        "PAGE": page,
        "KV_HEADS": spec.num_kv_heads,
        "GROUP": spec.num_heads // spec.num_kv_heads,
        "DIM": spec.head_dim,
        "WIDE": max(ROWS, triton.next_power_of_2(spec.head_dim)),
    }


@triton.jit
def _absorb(q, keys, values, table, places, seen, last, best, total, mixed, kv_head, SCALE: tl.constexpr,
            PAGE: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    """A block of keys: ``places`` [KEYS] in the sequence, below ``last``; a query sees them up to its ``seen`` [rows]."""
    dims = tl.arange(0, WIDE)
    is_key = places < last
    page = tl.load(table + places // PAGE, mask=is_key, other=0)
    slot = page.to(tl.int64) * PAGE + places % PAGE
    where = (slot * KV_HEADS + kv_head)[:, None] * DIM + dims[None, :]
    # What is masked may be anything, a NaN too, and must not be read.
    mask = is_key[:, None] & (dims < DIM)[None, :]
    k = tl.load(keys + where, mask=mask, other=0.0)
    scores = multiply(q, tl.trans(k), tl.zeros([q.shape[0], places.shape[0]], tl.float32)) * SCALE
    scores = tl.where(is_key[None, :] & (places[None, :] <= seen[:, None]), scores, float("-inf"))
    v = tl.load(values + where, mask=mask, other=0.0)
    highest = tl.maximum(best, tl.max(scores, 1))
    weights = tl.exp2(scores - highest[:, None])
    shrink = tl.exp2(best - highest)
    total = total * shrink + tl.sum(weights, 1)
    mixed = multiply(weights.to(v.dtype), v, mixed * shrink[:, None])
    return highest, total, mixed


@triton.jit
def _decode(q, keys, values, tables, lengths, out, mixed_parts, score_parts, arrivals, pages,
            SCALE: tl.constexpr, PAGE: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr,
            WIDE: tl.constexpr, ROWS: tl.constexpr, FEWEST: tl.constexpr, KEYS: tl.constexpr,
            OVERLAP: tl.constexpr):  # fmt: skip
    await_kernel_before(OVERLAP)
    sequence = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    length = tl.load(lengths + sequence)
    splits = tl.num_programs(2)
    chunk = tl.maximum(tl.cdiv(tl.cdiv(length, splits), KEYS) * KEYS, FEWEST)
    first = split * chunk
    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, WIDE)
    mask = (rows < GROUP)[:, None] & (dims < DIM)[None, :]
    pair = sequence.to(tl.int64) * KV_HEADS + kv_head
    own = pair * GROUP * DIM + rows[:, None] * DIM + dims[None, :]
    # Of a sequence that is left over, the first split says zeros; splits behind the end say nothing.
    if first < tl.maximum(length, 1 - split):
        last = tl.minimum(first + chunk, length)
        wanted = tl.load(q + own, mask=mask, other=0.0)
        best = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        mixed = tl.zeros([ROWS, WIDE], tl.float32)
        seen = tl.full([ROWS], 0, tl.int32) + last
        for start in range(bound(first), bound(last), KEYS):
            best, total, mixed = _absorb(
                wanted, keys, values, tables + sequence.to(tl.int64) * pages, start + tl.arange(0, KEYS), seen, last,
                best, total, mixed, kv_head, SCALE, PAGE, KV_HEADS, DIM, WIDE,
            )  # fmt: skip
        parts = tl.cdiv(length, chunk)
        if parts <= 1:
            tl.store(out + own, mixed / tl.where(total > 0.0, total, 1.0)[:, None], mask=mask)
        else:
            part = (pair * splits + split) * GROUP + rows
            tl.store(mixed_parts + part[:, None] * DIM + dims[None, :], mixed, mask=mask, cache_modifier=".cg")
            tl.store(score_parts + 2 * part, best, mask=rows < GROUP, cache_modifier=".cg")
            tl.store(score_parts + 2 * part + 1, total, mask=rows < GROUP, cache_modifier=".cg")
            tl.debug_barrier()  # what all threads of this program stored goes before its arrival
            arrived = tl.atomic_add(arrivals + pair, 1, sem="acq_rel", scope="gpu")
            if arrived == parts - 1:
                tl.debug_barrier()
                best = tl.full([ROWS], float("-inf"), tl.float32)
                total = tl.zeros([ROWS], tl.float32)
                mixed = tl.zeros([ROWS, WIDE], tl.float32)
                for number in range(0, bound(parts)):  # in their order: sums do not depend on who ended first
                    part = (pair * splits + number) * GROUP + rows
                    peak = tl.load(score_parts + 2 * part, mask=rows < GROUP, other=0.0, cache_modifier=".cg")
                    weight = tl.load(score_parts + 2 * part + 1, mask=rows < GROUP, other=1.0, cache_modifier=".cg")
                    place = mixed_parts + part[:, None] * DIM + dims[None, :]
                    more = tl.load(place, mask=mask, other=0.0, cache_modifier=".cg")
                    highest = tl.maximum(best, peak)
                    shrink = tl.exp2(best - highest)
                    grow = tl.exp2(peak - highest)
                    total = total * shrink + weight * grow
                    mixed = mixed * shrink[:, None] + more * grow[:, None]
                    best = highest
                tl.store(out + own, mixed / total[:, None], mask=mask)
                tl.store(arrivals + pair, 0)


@triton.jit
def _prompt(q, keys, values, tables, lengths, starts, tile_words, out, pages,
            SCALE: tl.constexpr, PAGE: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr,
            WIDE: tl.constexpr, HEADS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr):  # fmt: skip
    """Rows are (query, head), a query's heads beside each other."""
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    sequence = tl.load(tile_words + 2 * tile)
    if sequence < 0:
        return
    begin = tl.load(tile_words + 2 * tile + 1)
    end = tl.load(starts + sequence + 1)
    length = tl.load(lengths + sequence)
    rows = tl.arange(0, QUERIES * HEADS)
    dims = tl.arange(0, WIDE)
    token = begin + rows // HEADS
    head = rows % HEADS
    mask = ((token < end) & (head < GROUP))[:, None] & (dims < DIM)[None, :]
    own = ((token.to(tl.int64) * KV_HEADS + kv_head) * GROUP + head)[:, None] * DIM + dims[None, :]
    wanted = tl.load(q + own, mask=mask, other=0.0)
    seen = token + (length - end)
    last = tl.minimum(begin + QUERIES, end) + (length - end)
    best = tl.full([QUERIES * HEADS], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES * HEADS], tl.float32)
    mixed = tl.zeros([QUERIES * HEADS, WIDE], tl.float32)
    for start in range(0, bound(last), KEYS):
        best, total, mixed = _absorb(
            wanted, keys, values, tables + sequence.to(tl.int64) * pages, start + tl.arange(0, KEYS), seen, last,
            best, total, mixed, kv_head, SCALE, PAGE, KV_HEADS, DIM, WIDE,
        )  # fmt: skip
    tl.store(out + own, mixed / total[:, None], mask=mask)
