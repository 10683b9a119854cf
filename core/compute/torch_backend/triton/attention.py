# ruff: noqa: ANN001, ANN201, ANN202, N803, N806 - a kernel's arguments are pointers and scalars of Triton, its constants are in capitals
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,misc,assignment"
"""Attention over pages: page tables and lengths are read on the device, sums run over blocks of keys and are never stored.

All query heads of a kv head are rows of one program, so that a key is read once for them all. A sequence that decodes is
divided among ``splits`` programs; whichever ends last puts their results together.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from core.compute.torch_backend.triton.arithmetic import await_kernel_before, bound, let_kernel_behind_start, multiply
from core.compute.torch_backend.triton.step import Step
from core.compute.torch_backend.triton.tiling import Division
from core.interfaces.model import DecoderSpec

ROWS = 16  # the fewest of a tensor core's tile
TILE_ROWS = {2: 64, 4: 32}  # of a block of queries, the heads of a kv head included, by the bytes of a value
MOST_SPLITS = 64
ARRIVALS = 1 << 16  # counters: a sequence's kv head takes one


def rows_of(group: int) -> int:
    """What the heads of a kv head are filled up to."""
    return triton.next_power_of_2(group)  # type: ignore[no-any-return, unused-ignore]


def queries_in_tile(spec: DecoderSpec, dtype: torch.dtype) -> int:
    return max(1, TILE_ROWS[dtype.itemsize] // rows_of(spec.num_heads // spec.num_kv_heads))


def splits_of(pairs: int, longest: int, shortest: int, programs: int) -> int:
    """Among how many programs each of ``pairs`` (sequence, kv head) is divided, when about ``programs`` fill the device.

    ``shortest``: keys that are worth a program of their own.
    """
    if pairs > ARRIVALS:
        return 1
    return max(1, min(programs // pairs, -(-longest // shortest), MOST_SPLITS))


class Attention:
    def __init__(
        self,
        device: torch.device,
        processors: int,
        overlap: bool,
        divided: Callable[[int], Division],
    ) -> None:
        """``processors``: of the device. ``divided``: how, by the number of sequences that decode."""
        self._processors = processors
        self._overlap = overlap
        self._divided = divided
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
        how = self._divided(sequences)
        group = spec.num_heads // spec.num_kv_heads
        programs = how.programs * self._processors
        splits = splits_of(sequences * spec.num_kv_heads, step.layout.pages * page, how.shortest, programs)
        overlap = self._overlap and how.overlap and not step.layout.prompts
        mixed, scores = out, out
        if splits > 1:
            shape = (sequences, spec.num_kv_heads, splits, group)
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
            SCALE=scale(spec),
            **constants(spec, page),
            ROWS=max(ROWS, rows_of(group)),
            FEWEST=how.shortest,
            KEYS=how.keys,
            TOGETHER=4,
            OVERLAP=overlap,
            num_warps=how.warps,
            num_stages=how.stages,
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
            SCALE=scale(spec),
            **constants(spec, keys.shape[1]),
            HEADS=heads,
            QUERIES=queries_in_tile(spec, q.dtype),
            KEYS=32,
            num_warps=4,
            num_stages=3 if narrow else 2,
        )


def scale(spec: DecoderSpec) -> float:
    """Exponentials are powers of two."""
    return math.log2(math.e) / math.sqrt(spec.head_dim)


def constants(spec: DecoderSpec, page: int) -> dict[str, int]:
    return {
        "PAGE": page,
        "KV_HEADS": spec.num_kv_heads,
        "GROUP": spec.num_heads // spec.num_kv_heads,
        "DIM": spec.head_dim,
        "WIDE": max(ROWS, triton.next_power_of_2(spec.head_dim)),
    }


@triton.jit
def slots_of(table, places, is_key, PAGE: tl.constexpr):
    page = tl.load(table + places // PAGE, mask=is_key, other=0)
    return page.to(tl.int64) * PAGE + places % PAGE


@triton.jit
def page_of(table, place, last, PAGE: tl.constexpr):
    """Of a block of keys that lies in one page; asked for a block ahead, as what its keys wait for."""
    return tl.load(table + tl.minimum(place, last - 1) // PAGE, mask=last > 0, other=0)


@triton.jit
def _block(table, page, start, last, kv_head, PAGE: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr,
           WIDE: tl.constexpr, KEYS: tl.constexpr, IN_PAGE: tl.constexpr):  # fmt: skip
    """Where a block of keys lies: its beginning, and [KEYS, WIDE] from there. IN_PAGE: in this ``page``."""
    key = tl.arange(0, KEYS)
    dims = tl.arange(0, WIDE)
    if IN_PAGE:
        begin = ((page.to(tl.int64) * PAGE + start % PAGE) * KV_HEADS + kv_head) * DIM
        where = (key * KV_HEADS * DIM)[:, None] + dims[None, :]
    else:
        begin = 0
        slot = slots_of(table, start + key, start + key < last, PAGE)
        where = (slot * KV_HEADS + kv_head)[:, None] * DIM + dims[None, :]
    return begin, where


@triton.jit
def _attend(q, k, v, is_seen, best, total, mixed, SCALE: tl.constexpr, WHOLE: tl.constexpr):
    """A block of keys: ``is_seen`` [queries or 1, KEYS], which nobody asks where the block is seen WHOLE."""
    scores = multiply(q, tl.trans(k), tl.zeros([q.shape[0], k.shape[0]], tl.float32)) * SCALE
    if not WHOLE:
        scores = tl.where(is_seen, scores, float("-inf"))
    highest = tl.maximum(best, tl.max(scores, 1))
    weights = tl.exp2(scores - highest[:, None])
    shrink = tl.exp2(best - highest)
    total = total * shrink + tl.sum(weights, 1)
    return highest, total, multiply(weights.to(v.dtype), v, mixed * shrink[:, None])


@triton.jit
def _absorb(q, keys, values, table, page, start, seen, last, best, total, mixed, kv_head, SCALE: tl.constexpr,
            PAGE: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, KEYS: tl.constexpr,
            IN_PAGE: tl.constexpr, WHOLE: tl.constexpr):  # fmt: skip
    """A block of keys from place ``start`` of the sequence, below ``last``; a query sees them up to its ``seen`` [rows].
    WHOLE: every query sees them all."""
    first, where = _block(table, page, start, last, kv_head, PAGE, KV_HEADS, DIM, WIDE, KEYS, IN_PAGE)
    places = start + tl.arange(0, KEYS)
    is_key = places < last
    # What is masked may be anything, a NaN too, and must not be read.
    if not WHOLE:
        mask = is_key[:, None] & (tl.arange(0, WIDE) < DIM)[None, :]
        k = tl.load(keys + first + where, mask=mask, other=0.0)
        v = tl.load(values + first + where, mask=mask, other=0.0)
    elif DIM == WIDE:
        k = tl.load(keys + first + where)
        v = tl.load(values + first + where)
    else:
        mask = (tl.arange(0, WIDE) < DIM)[None, :]
        k = tl.load(keys + first + where, mask=mask, other=0.0)
        v = tl.load(values + first + where, mask=mask, other=0.0)
    is_seen = is_key[None, :] & (places[None, :] <= seen[:, None])
    return _attend(q, k, v, is_seen, best, total, mixed, SCALE, WHOLE)


@triton.jit
def _absorb_all(q, keys, values, table, start, whole, seen, last, best, total, mixed, kv_head, SCALE: tl.constexpr,
                PAGE: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr,
                KEYS: tl.constexpr):  # fmt: skip
    """The blocks from ``start``, a multiple of KEYS: up to ``whole`` seen by every query, which has code of its own that asks
    nothing, and from there to ``last`` as far as ``seen`` says."""
    IN_PAGE: tl.constexpr = PAGE % KEYS == 0
    page = page_of(table, start, last, PAGE)
    for begin in range(bound(start), bound(whole), KEYS):
        own = page
        page = page_of(table, begin + KEYS, last, PAGE)
        best, total, mixed = _absorb(q, keys, values, table, own, begin, seen, last, best, total, mixed, kv_head,
                                     SCALE, PAGE, KV_HEADS, DIM, WIDE, KEYS, IN_PAGE, True)  # fmt: skip
    for begin in range(bound(whole), bound(last), KEYS):
        own = page
        page = page_of(table, begin + KEYS, last, PAGE)
        best, total, mixed = _absorb(q, keys, values, table, own, begin, seen, last, best, total, mixed, kv_head,
                                     SCALE, PAGE, KV_HEADS, DIM, WIDE, KEYS, IN_PAGE, False)  # fmt: skip
    return best, total, mixed


@triton.jit
def _decode(q, keys, values, tables, lengths, out, mixed_parts, score_parts, arrivals, pages,
            SCALE: tl.constexpr, PAGE: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr,
            WIDE: tl.constexpr, ROWS: tl.constexpr, FEWEST: tl.constexpr, KEYS: tl.constexpr, TOGETHER: tl.constexpr,
            OVERLAP: tl.constexpr):  # fmt: skip
    let_kernel_behind_start(OVERLAP)
    sequence = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    length = tl.load(lengths + sequence)
    splits = tl.num_programs(2)
    chunk = tl.cdiv(tl.maximum(tl.cdiv(length, splits), FEWEST), KEYS) * KEYS
    first = split * chunk
    last = tl.minimum(first + chunk, length)
    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, WIDE)
    is_dim = (dims < DIM)[None, :]
    mask = (rows < GROUP)[:, None] & is_dim
    pair = sequence.to(tl.int64) * KV_HEADS + kv_head
    own = pair * GROUP * DIM + rows[:, None] * DIM + dims[None, :]
    table = tables + sequence.to(tl.int64) * pages
    if OVERLAP:
        # This step writes the newest key, and earlier steps all others, which may be read at once.
        places = first + tl.arange(0, KEYS)
        is_old = places < tl.minimum(last, length - 1)
        is_newest = (places == length - 1)[:, None] & is_dim
        _, where = _block(table, 0, first, last, kv_head, PAGE, KV_HEADS, DIM, WIDE, KEYS, False)
        k = tl.load(keys + where, mask=is_old[:, None] & is_dim, other=0.0)
        v = tl.load(values + where, mask=is_old[:, None] & is_dim, other=0.0)
    await_kernel_before(OVERLAP)
    # Of a sequence that is left over, the first split says zeros; splits behind the end say nothing.
    if first < tl.maximum(length, 1 - split):
        wanted = tl.load(q + own, mask=mask, other=0.0)
        best = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        mixed = tl.zeros([ROWS, WIDE], tl.float32)
        seen = tl.full([ROWS], 0, tl.int32) + last
        if OVERLAP:
            if (length > first) & (length <= first + KEYS):
                k = tl.where(is_newest, tl.load(keys + where, mask=is_newest, other=0.0), k)
                v = tl.where(is_newest, tl.load(values + where, mask=is_newest, other=0.0), v)
            if length > 0:
                best, total, mixed = _attend(wanted, k, v, (places < last)[None, :], best, total, mixed, SCALE, False)
            for start in range(bound(first + KEYS), bound(last), KEYS):  # as little code as can be: few keys, and none waits
                best, total, mixed = _absorb(wanted, keys, values, table, 0, start, seen, last, best, total, mixed, kv_head,
                                             SCALE, PAGE, KV_HEADS, DIM, WIDE, KEYS, False, False)  # fmt: skip
        else:
            whole = first + (last - first) // KEYS * KEYS
            best, total, mixed = _absorb_all(wanted, keys, values, table, first, whole, seen, last, best, total, mixed,
                                             kv_head, SCALE, PAGE, KV_HEADS, DIM, WIDE, KEYS)  # fmt: skip
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
                for begin in range(0, bound(parts), TOGETHER):  # in their order: sums do not depend on who ended first
                    peaks, weights, more, highest = (), (), (), best
                    for number in tl.static_range(TOGETHER):  # asked for together, one answer is waited for
                        of_part = (pair * splits + begin + number) * GROUP + rows
                        is_part = (rows < GROUP) & (begin + number < parts)
                        peak = tl.load(score_parts + 2 * of_part, mask=is_part, other=float("-inf"), cache_modifier=".cg")
                        weight = tl.load(score_parts + 2 * of_part + 1, mask=is_part, other=0.0, cache_modifier=".cg")
                        place = mixed_parts + of_part[:, None] * DIM + dims[None, :]
                        sums = tl.load(place, mask=is_part[:, None] & is_dim, other=0.0, cache_modifier=".cg")
                        peaks, weights, more = peaks + (peak,), weights + (weight,), more + (sums,)  # noqa: RUF005
                        highest = tl.maximum(highest, peak)
                    level = tl.where(rows < GROUP, highest, 0.0)  # rows that are no heads have no peak
                    shrink = tl.exp2(best - level)
                    total *= shrink
                    mixed *= shrink[:, None]
                    for number in tl.static_range(TOGETHER):
                        grow = tl.exp2(peaks[number] - level)
                        total += weights[number] * grow
                        mixed += more[number] * grow[:, None]
                    best = highest
                tl.store(out + own, mixed / tl.where(total > 0.0, total, 1.0)[:, None], mask=mask)
                tl.store(arrivals + pair, 0)


@triton.jit
def _prompt(q, keys, values, tables, lengths, starts, tile_words, out, pages,
            SCALE: tl.constexpr, PAGE: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr,
            WIDE: tl.constexpr, HEADS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr):  # fmt: skip
    """Rows are (query, head), a query's heads beside each other. The last tiles of a prompt have most to do: they go first."""
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
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
    whole = (begin + (length - end) + 1) // KEYS * KEYS  # what its first query sees
    best, total, mixed = _absorb_all(wanted, keys, values, tables + sequence.to(tl.int64) * pages, 0, whole, seen, last,
                                     best, total, mixed, kv_head, SCALE, PAGE, KV_HEADS, DIM, WIDE, KEYS)  # fmt: skip
    tl.store(out + own, mixed / total[:, None], mask=mask)
