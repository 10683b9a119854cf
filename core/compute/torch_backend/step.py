"""A step's inputs on the device. A *reading* is one call of attention."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.compute.contexts import Call, calls
from core.interfaces.compute import StepBatch

QUERY_BLOCK = {"cpu": 128, "cuda": 256}  # on a CPU 512 tokens take a third less time in blocks of 128 than at once


@dataclass(frozen=True, slots=True)
class Reading:
    rows: slice | Tensor  # of the step's tokens: ``queries`` in a row for each of ``sequences``
    sequences: int
    queries: int
    pages: Tensor  # [sequences * pages of the longest]
    keys: int  # of the longest
    mask: Tensor | None  # added to the scores: [sequences, 1, 1, keys] or [queries * queries a kv head, keys]


@dataclass(frozen=True, slots=True)
class Step:
    token_ids: Tensor  # [T]
    turns: Tensor  # rope, complex64 [T, 1, head_dim / 2]
    slots: Tensor  # [T]
    logit_rows: Tensor | None  # None: every token's, in order
    num_logits: int
    readings: tuple[Reading, ...]


def to_device(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """A copy, which the host does not wait for."""
    tensor = torch.tensor(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


class Masks:
    """What is added to scores so that no query sees a key that is later, or not its sequence's: -inf there, 0 elsewhere."""

    def __init__(self, group: int, dtype: torch.dtype, device: torch.device) -> None:
        self.device = device
        self.block = QUERY_BLOCK[device.type]
        self._group = group  # queries that share a kv head: each position stands that many times in a row
        self._dtype = dtype
        self._corner = torch.empty((0, 0))

    def beyond(self, lengths: NDArray[np.int32], keys: int) -> Tensor | None:
        """[sequences, 1, 1, keys]: each sequence sees as many keys as it has."""
        if (lengths == keys).all():
            return None
        mask = torch.zeros((len(lengths), keys), dtype=self._dtype, device=self.device)
        return mask.masked_fill_(to_device(np.arange(keys) >= lengths[:, None], self.device), -math.inf)[:, None, None]

    def later(self, queries: int, keys: int) -> Tensor | None:
        """[queries * group, keys] for the last ``queries`` of ``keys`` positions, at most a block of them.

        All are corners of one mask, which is zero but for its last columns.
        """
        if keys > self._corner.shape[1]:
            later = torch.full((self.block, self.block), -math.inf, dtype=self._dtype, device=self.device).triu_(1)
            width = max(self.block, 1 << (keys - 1).bit_length())
            self._corner = torch.zeros((self.block * self._group, width), dtype=self._dtype, device=self.device)
            self._corner[:, -self.block :] = later.repeat_interleave(self._group, 0)
        corner = self._corner[-queries * self._group :, -keys:]
        return corner if self.device.type == "cpu" else corner.contiguous()  # CUDA's kernels want aligned rows


def upload(batch: StepBatch, page_size: int, turns: Tensor, masks: Masks) -> Step:
    """``turns``: of every position."""
    device, rows = masks.device, batch.logit_rows
    every = np.array_equal(rows, np.arange(batch.num_tokens))
    return Step(
        token_ids=to_device(batch.token_ids, device),
        turns=turns.index_select(0, to_device(batch.positions, device)).unsqueeze(1),
        slots=to_device(batch.slots, device),
        logit_rows=None if every else to_device(rows, device),
        num_logits=len(rows),
        readings=tuple(reading(call, masks) for call in calls(batch, page_size, masks.block)),
    )


def reading(call: Call, masks: Masks) -> Reading:
    return Reading(
        rows=call.rows if isinstance(call.rows, slice) else to_device(call.rows, masks.device),
        sequences=call.sequences,
        queries=call.queries,
        pages=to_device(call.pages, masks.device),
        keys=call.keys,
        mask=masks.later(call.queries, call.keys) if call.queries > 1 else masks.beyond(call.lengths, call.keys),
    )
