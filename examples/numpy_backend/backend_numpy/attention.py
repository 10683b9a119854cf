"""The paged keys and values, what a step knows of them, and attention over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.compute.contexts import Call, calls
from core.compute.frequencies import inverse_frequencies
from core.compute.host_copies import PagesOfCpu
from core.interfaces.compute import HostPages, KVCache, StepBatch
from core.interfaces.model import DecoderSpec

Floats = NDArray[np.float32]
QUERY_BLOCK = 128  # a prompt's queries that are computed together: bounds the scores


class PagedKV(KVCache):
    """Keys and values, [layers, 2, pages, page, kv_heads, head_dim]. numpy's zeros take memory as they are written to."""

    def __init__(self, spec: DecoderSpec, num_pages: int, page_size: int) -> None:
        self.num_pages, self.page_size, self.spec = num_pages, page_size, spec
        self.memory = np.zeros((spec.num_layers, 2, num_pages, page_size, spec.num_kv_heads, spec.head_dim), np.float32)
        self.nbytes = self.memory.nbytes
        self.slots = self.memory.reshape(spec.num_layers, 2, num_pages * page_size, spec.num_kv_heads, spec.head_dim)
        self.frequencies = inverse_frequencies(spec)

    def host_pages(self, number: int) -> HostPages:
        layers, both, _, *page = self.memory.shape
        return PagesOfCpu(self.memory, np.empty((number, layers, both, *page), np.float32), number)


@dataclass(frozen=True)
class Reading:
    """One call of attention: the keys of some sequences, as many for each, and the queries that look at them."""

    rows: Any  # of the step's tokens: ``queries`` in a row for each of ``sequences``
    sequences: int
    queries: int
    slots: NDArray[np.int64]  # [sequences, keys]
    unseen: NDArray[np.bool_]  # [sequences, queries, keys]: keys that are later than a query, or not its sequence's


@dataclass(frozen=True)
class Step:
    token_ids: NDArray[np.int32]  # [T]
    turns: NDArray[np.complex64]  # cos + i sin of each token's angles, [T, 1, head_dim / 2]
    slots: NDArray[np.int64]  # [T]
    logit_rows: NDArray[np.int64]  # [R]
    readings: tuple[Reading, ...]


def upload(batch: StepBatch, kv: PagedKV) -> Step:
    """The batch's arrays may be used again for the next step, so nothing of them is kept that is not a copy."""
    angles = np.outer(batch.positions.astype(np.float64), kv.frequencies)[:, None]
    return Step(
        token_ids=batch.token_ids.copy(),
        turns=np.exp(1j * angles).astype(np.complex64),
        slots=batch.slots.copy(),
        logit_rows=batch.logit_rows.copy(),
        readings=tuple(reading(call, kv.page_size) for call in calls(batch, kv.page_size, QUERY_BLOCK)),
    )


def reading(call: Call, page_size: int) -> Reading:
    lengths, keys = call.lengths[:, None], np.arange(call.keys)
    own = np.minimum(keys, lengths - 1)  # behind a context a page holds anything, even what is no number: its last key instead
    pages = np.take_along_axis(call.pages.reshape(call.sequences, -1), own // page_size, axis=1).astype(np.int64)
    last_seen = lengths - call.queries + np.arange(call.queries)  # by each query
    return Reading(call.rows, call.sequences, call.queries, pages * page_size + own % page_size, keys > last_seen[..., None])


def rotate(heads: Floats, turns: NDArray[np.complex64], spec: DecoderSpec) -> Floats:
    """[T, heads, head_dim]: each pair of a head is a complex number, and its turn another."""
    if spec.rope_style == "interleaved":
        turned: Floats = (np.ascontiguousarray(heads).view(np.complex64) * turns).view(np.float32)
        return turned
    first, second = np.split(heads, 2, axis=-1)
    pairs = (first + np.complex64(1j) * second) * turns
    return np.concatenate((pairs.real, pairs.imag), axis=-1)


def attend(q: Floats, kv: PagedKV, layer: int, reading: Reading) -> Floats:
    """q [sequences * queries, q_width] and back. Heads that share keys are further queries of one head: no key is repeated."""
    spec, (sequences, queries) = kv.spec, (reading.sequences, reading.queries)
    keys, values = kv.slots[layer][:, reading.slots].transpose(0, 1, 3, 2, 4)  # each [sequences, kv_heads, keys, head_dim]
    q = q.reshape(sequences, queries, spec.num_kv_heads, -1, spec.head_dim).transpose(0, 2, 3, 1, 4)
    flat = q.reshape(sequences, spec.num_kv_heads, -1, spec.head_dim) * np.float32(spec.head_dim**-0.5)
    scores = (flat @ keys.swapaxes(2, 3)).reshape(*q.shape[:4], -1)  # [sequences, kv_heads, group, queries, keys]
    np.copyto(scores, -np.inf, where=reading.unseen[:, None, None])
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    mixed = weights.reshape(*flat.shape[:3], -1) @ values
    out: Floats = mixed.reshape(q.shape).transpose(0, 3, 1, 2, 4).reshape(sequences * queries, spec.q_width)
    return out
