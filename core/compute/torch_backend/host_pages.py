"""Copies of KV pages in host memory, made by a thread or on a stream of their own.

A page is [layers, 2, page, kv_heads, head_dim] there, contiguous, where in the KV cache it lies in a piece a layer.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.compute import host_copies
from core.interfaces.compute import Copying, HostPages

CHUNK_BYTES = 32 * 2**20
"""How much host memory is taken at a time: little, since a step waits while the driver pins it."""


class _Places:
    """Memory for places, taken a chunk at a time."""

    def __init__(self, memory: Tensor, number: int, pinned: bool) -> None:
        self._shape = (*memory.shape[:2], *memory.shape[3:])  # of one page
        self._dtype, self._pinned = memory.dtype, pinned
        self._per_chunk = max(1, CHUNK_BYTES // (memory.nbytes // memory.shape[2]))
        self._number = number
        self._chunks: dict[int, Tensor] = {}

    def __getitem__(self, place: int) -> Tensor:
        chunk, index = divmod(place, self._per_chunk)
        if chunk not in self._chunks:
            number = min(self._per_chunk, self._number - chunk * self._per_chunk)
            self._chunks[chunk] = torch.empty((number, *self._shape), dtype=self._dtype, pin_memory=self._pinned)
        return self._chunks[chunk][index]


class PagesOfCpu(host_copies.PagesOfCpu):
    def __init__(self, memory: Tensor, number: int) -> None:
        super().__init__(memory, _Places(memory, number, pinned=False), number)


class _Event(Copying):
    def __init__(self, event: torch.cuda.Event) -> None:
        self._event = event

    def done(self) -> bool:
        return bool(self._event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        self._event.synchronize()


class PagesOfCuda(HostPages):
    """A stream of its own copies, to and from pinned memory, one piece of contiguous device memory a page."""

    def __init__(self, memory: Tensor, number: int) -> None:
        self.number = number
        self._memory = memory
        self._places = _Places(memory, number, pinned=True)
        self._stream = torch.cuda.Stream(memory.device)  # type: ignore[no-untyped-call]

    def save(self, pages: NDArray[np.int32], places: NDArray[np.int32]) -> Copying:
        with self._after_the_steps():
            for page, place in zip(pages.tolist(), places.tolist(), strict=True):
                self._places[place].copy_(self._memory[:, :, page].contiguous(), non_blocking=True)
            return self._event()

    def restore(self, places: NDArray[np.int32], pages: NDArray[np.int32]) -> Copying:
        with self._after_the_steps():
            for page, place in zip(pages.tolist(), places.tolist(), strict=True):
                self._memory[:, :, page].copy_(self._places[place].to(self._memory.device, non_blocking=True))
            return self._event()

    def close(self) -> None:
        self._stream.synchronize()

    def _after_the_steps(self) -> torch.cuda.StreamContext:
        self._stream.wait_stream(torch.cuda.current_stream(self._memory.device))
        return torch.cuda.stream(self._stream)

    def _event(self) -> Copying:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return _Event(event)
