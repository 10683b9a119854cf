"""A step's inputs on the device. A *reading* is one call of attention."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import Tensor

from core.compute.contexts import Call, calls
from core.compute.paddle_backend.machine import Place, to_device
from core.interfaces.compute import StepBatch

QUERY_BLOCK = 128


@dataclass(frozen=True, slots=True)
class Reading:
    rows: slice | Tensor  # of the step's tokens: ``queries`` in a row for each of ``sequences``
    sequences: int
    queries: int
    rows_of_keys: Tensor  # of the cache's [pages * page * kv_heads]: for each sequence and kv head, its ``keys`` in order
    keys: int  # of the longest; a shorter one repeats its last
    mask: Tensor | None  # added to the scores: [sequences, 1, 1, keys] or [queries * queries a kv head, keys]


@dataclass(frozen=True, slots=True)
class Step:
    token_ids: Tensor  # [T]
    turns: Tensor  # rope, complex64 [T, 1, head_dim / 2]
    slots: Tensor  # [T]
    logit_rows: Tensor | None  # None: every token's, in order
    num_logits: int
    readings: tuple[Reading, ...]


class Masks:
    """What is added to scores so that no query sees a key that is later, or not its sequence's: -inf there, 0 elsewhere."""

    def __init__(self, group: int, kv_heads: int, place: Place) -> None:
        self.place = place
        self.kv_heads = kv_heads
        self._orders: dict[int, tuple[Tensor, Tensor]] = {}
        self._group = group  # queries that share a kv head: each position stands that many times in a row
        self._corner = np.zeros((0, 0), np.float32)

    def beyond(self, lengths: NDArray[np.int32], keys: int) -> Tensor | None:
        """[sequences, 1, 1, keys]: each sequence sees as many keys as it has."""
        if (lengths == keys).all():
            return None
        mask = np.where(np.arange(keys) >= lengths[:, None], np.float32(-math.inf), np.float32(0))
        return to_device(mask[:, None, None], self.place)

    def later(self, queries: int, keys: int) -> Tensor | None:
        """[queries * group, keys] for the last ``queries`` of ``keys`` positions, at most a block of them.

        All are corners of one mask, which is zero but for its last columns.
        """
        if keys > self._corner.shape[1]:
            later = np.triu(np.full((QUERY_BLOCK, QUERY_BLOCK), -math.inf, np.float32), 1)
            width = max(QUERY_BLOCK, 1 << (keys - 1).bit_length())
            self._corner = np.zeros((QUERY_BLOCK * self._group, width), np.float32)
            self._corner[:, -QUERY_BLOCK:] = later.repeat(self._group, 0)
        return to_device(self._corner[-queries * self._group :, -keys:], self.place)

    def orders(self, queries: int) -> tuple[Tensor, Tensor]:
        """Rows [queries * heads] of a block's q in the order of kv heads, and of what comes out, in q's order.

        Rows are selected where one would transpose: what Paddle copies out of a transposed view it copies number by number.
        """
        if queries not in self._orders:
            ours = np.arange(queries * self.kv_heads * self._group).reshape(queries, self.kv_heads, self._group)
            theirs = ours.transpose(1, 0, 2).reshape(-1)
            self._orders[queries] = to_device(theirs, self.place), to_device(np.argsort(theirs), self.place)
        return self._orders[queries]


def upload(batch: StepBatch, page_size: int, turns: Tensor, masks: Masks) -> Step:
    """``turns``: of every position."""
    place, rows = masks.place, batch.logit_rows
    every = np.array_equal(rows, np.arange(batch.num_tokens))
    return Step(
        token_ids=to_device(batch.token_ids, place),
        turns=paddle.index_select(turns, to_device(batch.positions, place)).unsqueeze(1),
        slots=to_device(batch.slots, place),
        logit_rows=None if every else to_device(rows, place),
        num_logits=len(rows),
        readings=tuple(reading(call, page_size, masks) for call in calls(batch, page_size, QUERY_BLOCK)),
    )


def reading(call: Call, page_size: int, masks: Masks) -> Reading:
    return Reading(
        rows=call.rows if isinstance(call.rows, slice) else to_device(call.rows, masks.place),
        sequences=call.sequences,
        queries=call.queries,
        rows_of_keys=to_device(rows_of_keys(call, page_size, masks.kv_heads), masks.place),
        keys=call.keys,
        mask=masks.later(call.queries, call.keys) if call.queries > 1 else masks.beyond(call.lengths, call.keys),
    )


def rows_of_keys(call: Call, page_size: int, kv_heads: int) -> NDArray[np.int64]:
    own = np.minimum(np.arange(call.keys), call.lengths[:, None] - 1)  # [sequences, keys]: behind its own a page holds anything
    pages = np.take_along_axis(call.pages.reshape(call.sequences, -1), own // page_size, 1).astype(np.int64)
    slots = pages * page_size + own % page_size
    rows: NDArray[np.int64] = (slots[:, None] * kv_heads + np.arange(kv_heads)[:, None]).reshape(-1)
    return rows
