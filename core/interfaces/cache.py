"""Who owns which KV pages. The pool counts references; a cache policy decides what is shared and what is kept.

Life of a page::

      free --take--> owned by one request --share--> owned by several --release--> ... --release--> free
                                                                             \\-- kept by the policy (a count of its own),
                                                                                 until ``reclaim`` gives it back
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.interfaces.compute import Copying, KVCache

Pages = NDArray[np.int32]


class PagePool:
    """The pages of one KV cache and a reference count each. Page ids run from 0 to ``total`` - 1."""

    def __init__(self, total: int, page_size: int) -> None:
        if total < 1 or page_size < 1:
            raise ValueError(f"a pool needs pages: total={total}, page_size={page_size}")
        self.total = total
        self.page_size = page_size
        self.counts = np.zeros(total, dtype=np.int32)
        # A stack: the page given back last is taken first, while it is warm in the CPU's caches.
        self._free = np.arange(total - 1, -1, -1, dtype=np.int32)
        self._num_free = total

    @property
    def num_free(self) -> int:
        return self._num_free

    def take(self, number: int) -> Pages:
        """``number`` free pages, each with a count of 1. The caller has checked ``num_free``."""
        if number > self._num_free:
            raise RuntimeError(f"{number} pages wanted, {self._num_free} free: the caller did not check")
        pages: Pages = self._free[self._num_free - number : self._num_free][::-1].copy()
        self._num_free -= number
        self.counts[pages] = 1
        return pages

    def retain(self, pages: Pages) -> None:
        """One more owner for each page; no page may be free, none may stand in ``pages`` twice."""
        if (self.counts[pages] < 1).any():
            raise RuntimeError("a free page cannot be shared")
        self.counts[pages] += 1

    def release(self, pages: Pages) -> None:
        """One owner fewer for each page; pages nobody owns any more become free."""
        if (self.counts[pages] < 1).any():
            raise RuntimeError("a page was released more often than it was taken")
        self.counts[pages] -= 1
        idle = pages[self.counts[pages] == 0]
        self._free[self._num_free : self._num_free + len(idle)] = idle
        self._num_free += len(idle)


@dataclass(frozen=True)
class Hit:
    """Pages whose contents are a prefix of the asked tokens; each already has one count for the asking request.

    ``arriving``: copies into some of them are still under way; the request is not computed before they are done.
    """

    pages: Pages
    num_tokens: int
    arriving: tuple[Copying, ...] = ()


class CachePolicy(ABC):
    """Decides which pages are shared, kept and given up. Called by the block manager, never in the token loop's inner part:
    once when a request is admitted, when one of its pages fills up, and when it leaves.

    ``shares``: a full page that it is told of can be found by others at once. A request that could use a page which another is
    computing then waits for it, instead of computing it too.

    ``keeps_outputs``: a policy that says False is told of full pages of prompts alone, not of those with generated tokens.
    """

    shares: bool = False
    keeps_outputs: bool = True

    @abstractmethod
    def attach(self, pool: PagePool) -> None:
        """Called once, before any request."""

    def attach_memory(self, kv: KVCache) -> None:  # noqa: B027 - most policies count pages and never touch them
        """Called once, before ``attach``, with the memory behind the pages: for policies that copy them elsewhere."""

    @abstractmethod
    def lookup(self, tokens: NDArray[np.int32], salt: str) -> Hit:
        """The longest kept prefix of ``tokens``, at most ``len(tokens) - 1`` tokens (the last one's logits are needed).

        The pages come back retained for the caller.
        """

    @abstractmethod
    def filled(self, tokens: NDArray[np.int32], pages: Pages, first: int, salt: str) -> None:
        """Pages ``first`` onward of a request's ``pages`` are full and final: they hold ``tokens[first * page_size:]``.

        ``len(tokens) == len(pages) * page_size``. The policy may retain them to keep them.
        """

    @abstractmethod
    def leave(self, pages: Pages) -> None:
        """A request ended or was preempted: drop its count on each of its pages (``pool.release``, in the policy's order)."""

    @abstractmethod
    def reclaim(self, wanted: int) -> int:
        """Give up kept pages so that up to ``wanted`` more become free; returns how many did."""

    @property
    @abstractmethod
    def num_reclaimable(self) -> int:
        """Kept pages that no request uses: free in all but name."""

    def reset(self) -> None:  # noqa: B027
        """Forget everything that is kept."""

    def close(self) -> None:  # noqa: B027
        """The engine ends; the backend is closed next."""
