"""Who owns which KV pages. The pool counts references; a cache policy decides what is shared and what is kept.

Life of a page::

      free --take--> owned by one request --share--> owned by several --release--> ... --release--> free
                                                                             \\-- kept by the policy (a count of its own),
                                                                                 until ``reclaim`` gives it back
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True, slots=True)
class Found:
    """How much of a waiting request's prompt is kept. Nothing has been retained, copied or put in another order for it.

    ``num_tokens``: whole pages from the beginning on. ``room``: by how many pages ``free + reclaimable`` shrinks when they are
    taken: those of them that no request uses, and one for each that has to be fetched from elsewhere. ``arriving``: some have
    to be fetched, or are on their way.

    ``memo`` is the policy's own, and nobody else looks at it: what it had to work out and would have to again, such as digests.
    """

    num_tokens: int
    room: int = 0
    arriving: bool = False
    memo: Any = None


@dataclass(frozen=True, slots=True)
class Hit:
    """The pages of what was found, in order; each has one count for the request that is admitted.

    ``arriving``: copies into some of them are still under way; the request is not computed before they are done.
    """

    pages: Pages
    arriving: tuple[Copying, ...] = ()


class CachePolicy(ABC):
    """Decides which pages are shared, kept and given up. Called by the block manager, never in the token loop's inner part:
    when a request may be admitted, when one of its pages fills up, and when it leaves::

        find --not now--> find --granted tokens, and its pages can be had--> take --> filled, filled, ... --> leave

    A request that waits is asked about many times and admitted once. So ``find`` only looks: ``num_reclaimable``, the counts of
    pages, the order in which ``reclaim`` gives them up and every copy are as they were before it. What use does to a
    page (young again, fetched from the host) is done by ``take``.

    What is kept may change in ``take``, ``filled``, ``leave``, ``reclaim`` and ``reset``, and nowhere else: between two of
    these calls the block manager does not ask again about a prompt that it has asked about.

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
    def find(self, tokens: NDArray[np.int32], salt: str, earlier: Found | None = None) -> Found:
        """How much of ``tokens`` is kept, at most ``len(tokens) - 1`` of them (the last one's logits are needed).

        ``earlier``: what was found of the very same tokens and salt before, for its ``memo``. More may be kept by now, or less.
        """

    @abstractmethod
    def take(self, found: Found) -> Hit:
        """All that was found belongs to a request from now on: retain it, and start what copies it needs.

        Called only where something was found, while none of the calls that change what is kept has come since, and while
        ``free + reclaimable`` is at least ``found.room``.
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
