"""Copies of KV pages in host memory. A CPU's cache lies in numpy's memory: a thread copies, and no framework takes part.

A page is [layers, 2, page, kv_heads, head_dim] there, contiguous, where in the KV cache it lies in a piece a layer.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from paddle import Tensor

from core.compute.paddle_backend.machine import to_device
from core.errors import EngineDeadError
from core.interfaces.compute import Copying, HostPages


class _Task(Copying):
    def __init__(self, future: Future[None]) -> None:
        self._future = future

    def done(self) -> bool:
        if self._future.done():
            self.wait()
            return True
        return False

    def wait(self) -> None:
        try:
            self._future.result()
        except Exception as error:
            raise EngineDeadError(f"KV pages cannot be copied: {error}") from error


class PagesOfCpu(HostPages):
    """One thread copies: numpy lets go of the interpreter meanwhile. Places cost memory once they are written to."""

    def __init__(self, memory: NDArray[np.float32], number: int) -> None:
        self.number = number
        self._memory = memory
        self._places = np.empty((number, *memory.shape[:2], *memory.shape[3:]), memory.dtype)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kv-pages")

    def save(self, pages: NDArray[np.int32], places: NDArray[np.int32]) -> Copying:
        return self._copy(pages.tolist(), places.tolist(), out=True)

    def restore(self, places: NDArray[np.int32], pages: NDArray[np.int32]) -> Copying:
        return self._copy(pages.tolist(), places.tolist(), out=False)

    def close(self) -> None:
        self._thread.shutdown()

    def _copy(self, pages: list[int], places: list[int], out: bool) -> Copying:
        def copy() -> None:
            for page, place in zip(pages, places, strict=True):
                here, there = self._memory[:, :, page], self._places[place]
                if out:
                    there[:] = here
                else:
                    here[:] = there

        return _Task(self._thread.submit(copy))


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
