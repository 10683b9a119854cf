"""A block policy: how the pages of one pool are divided between sequences that are being admitted and those that grow.

The block manager owns the mechanism (who holds which page, and what a cache policy gives up when room is wanted). A block
policy only says how many pages may be given now, and to whom::

      total = free + reclaimable + in use
                                   in use = given at admission + grown since

It is asked in every step in which a page changes hands, so it does arithmetic and nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PoolUse:
    """The state of a pool, in pages.

    ``available``: free, or kept by the cache policy and given up on demand. ``grown``: held by running sequences and given to
    them after their admission. ``growing``: running sequences that may still want more than they hold.
    """

    total: int
    available: int
    grown: int = 0
    growing: int = 0

    @property
    def admitted(self) -> int:
        """In use since an admission: those of prompts, of what a preempted sequence had generated, and those given ahead."""
        return self.total - self.available - self.grown


class BlockPolicy(ABC):
    """``ahead``: pages given at admission beyond those of the tokens known by then, so that a sequence starts with room to
    grow; never more than it can come to need.

    Both answers are at most ``use.available`` and may be negative, which is none. In an idle pool ``for_admission`` bounds the
    longest request that is accepted at all. A running sequence that is refused growth is preempted, or another is in its
    place, and computed again when it is admitted anew, with all its tokens counting as known: so the first in order always
    ends, even where ``for_growth`` is always 0.
    """

    ahead: int = 0

    @abstractmethod
    def for_admission(self, use: PoolUse) -> int:
        """Pages that sequences waiting to be admitted may be given now."""

    @abstractmethod
    def for_growth(self, use: PoolUse) -> int:
        """Pages that running sequences may be given now."""
