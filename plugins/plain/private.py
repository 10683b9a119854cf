"""No sharing: a page belongs to one request and is free the moment that request leaves."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from core.interfaces.cache import CachePolicy, Found, Hit, PagePool, Pages


class PrivatePages(CachePolicy):
    def attach(self, pool: PagePool) -> None:
        self._pool = pool

    def find(self, tokens: NDArray[np.int32], salt: str, earlier: Found | None = None) -> Found:
        return Found(0)

    def take(self, found: Found) -> Hit:
        return Hit(np.zeros(0, np.int32))

    def filled(self, tokens: NDArray[np.int32], pages: Pages, first: int, salt: str) -> None:
        pass

    def leave(self, pages: Pages) -> None:
        self._pool.release(pages)

    def reclaim(self, wanted: int) -> int:
        return 0

    @property
    def num_reclaimable(self) -> int:
        return 0
