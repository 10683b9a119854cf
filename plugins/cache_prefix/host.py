"""The second tier: pages that were given up, found again in host memory.

Every kept page is copied as it falls idle, so that none waits for its copy when its room is wanted. When all places are taken
the longest unused one is.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from core.interfaces.compute import Copying, HostPages

AT_ONCE = 16
"""Pages in one copy: who wants the room of a page that is being copied waits for so many at most, and those before."""


class HostTier:
    """``digest`` names contents, as everywhere in this plugin."""

    def __init__(self, pages: HostPages) -> None:
        self._pages = pages
        self._places: OrderedDict[bytes, int] = OrderedDict()  # digest -> place; the first goes first
        self._free = list(range(pages.number - 1, -1, -1))

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._places

    def save(self, contents: list[tuple[int, bytes]]) -> list[tuple[list[int], Copying]]:
        """Copy pages whose digests are new; the copies, each with its pages."""
        contents = contents[-self._pages.number :]  # more would overwrite one another
        copies = []
        for start in range(0, len(contents), AT_ONCE):
            pages, places = [], []
            for page, digest in contents[start : start + AT_ONCE]:
                if digest in self._places:
                    self._places.move_to_end(digest)
                else:
                    # A place may be taken while a copy from or to it is under way: this one is made after that.
                    self._places[digest] = place = self._free.pop() if self._free else self._places.popitem(last=False)[1]
                    pages.append(page)
                    places.append(place)
            if pages:
                copies.append((pages, self._pages.save(_ints(pages), _ints(places))))
        return copies

    def restore(self, digests: list[bytes], pages: list[int]) -> Copying:
        """Copy contents back, after what is still being saved."""
        places = [self._places[digest] for digest in digests]
        for digest in reversed(digests):
            self._places.move_to_end(digest)
        return self._pages.restore(_ints(places), _ints(pages))

    def clear(self) -> None:
        self._free += self._places.values()
        self._places.clear()

    def close(self) -> None:
        self._pages.close()


def _ints(numbers: list[int]) -> NDArray[np.int32]:
    return np.array(numbers, np.int32)
