"""Copies of KV pages between a CPU's cache and host memory, made by a thread, whichever framework's memory it is."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    """One thread copies: frameworks and numpy let go of the interpreter meanwhile."""

    def __init__(self, memory: Any, places: Any, number: int) -> None:
        """
        :param memory: the cache, [layers, 2, pages, page, kv_heads, head_dim], of numpy or of a framework.
        :param places: ``number`` arrays [layers, 2, page, kv_heads, head_dim] by their number, of the same.
        """
        self.number = number
        self._memory = memory
        self._places = places
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
