"""Copies of KV pages in host memory. A CPU's cache lies in numpy's memory: a thread copies, and no framework takes part.

A page is [layers, 2, page, kv_heads, head_dim] there, contiguous, where in the KV cache it lies in a piece a layer.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from paddle import Tensor

from core.compute import host_copies
from core.compute.paddle_backend.machine import to_device
from core.interfaces.compute import Copying, HostPages


class PagesOfCpu(host_copies.PagesOfCpu):
    """Of numpy's memory, where the cache lies; places cost memory once they are written to."""

    def __init__(self, memory: NDArray[np.float32], number: int) -> None:
        super().__init__(memory, np.empty((number, *memory.shape[:2], *memory.shape[3:]), memory.dtype), number)


class _Done(Copying):
    def done(self) -> bool:
        return True

    def wait(self) -> None:
        pass


class PagesOfCuda(HostPages):
    """Copies are made at once, after what has been launched: Paddle says nothing public about copies beside other work."""

    def __init__(self, memory: Tensor, number: int) -> None:
        self.number = number
        self._memory = memory
        self._places: dict[int, NDArray[np.generic]] = {}  # bfloat16 as Paddle gives it to numpy: its bits

    def save(self, pages: NDArray[np.int32], places: NDArray[np.int32]) -> Copying:
        for page, place in zip(pages.tolist(), places.tolist(), strict=True):
            self._places[place] = self._memory[:, :, page].numpy()
        return _Done()

    def restore(self, places: NDArray[np.int32], pages: NDArray[np.int32]) -> Copying:
        for page, place in zip(pages.tolist(), places.tolist(), strict=True):
            self._memory[:, :, page] = to_device(self._places[place], self._memory.place)
        return _Done()
