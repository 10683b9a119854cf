"""How fast calls come to their end: from that, when a call that finds no place may come again (``Retry-After``)."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from time import monotonic

LEAST, MOST = 1, 30  # seconds
RECENT = 10.0  # seconds; ends before that do not count
SPREAD = 0.25  # by so much, either way, clients are told to come at different times


class Pace:
    """``began`` and ``ended`` for every call."""

    def __init__(self, clock: Callable[[], float] = monotonic, chance: Callable[[], float] = random.random) -> None:
        """:param chance: a number in [0, 1), another at each call."""
        self._clock = clock
        self._chance = chance
        self._running = 0
        self._ends: deque[float] = deque()  # recent ones, since it is busy
        self._since = self._last = clock()  # when it became busy, and when something ended, or it did

    def began(self) -> None:
        if not self._running:
            self._since = self._last = self._clock()
            self._ends.clear()
        self._running += 1

    def ended(self, *, served: bool) -> None:
        """``served``: it had an answer, so that it is one of those whose turn had come."""
        self._running -= 1
        if served:
            self._last = self._clock()
            self._ends.append(self._last)
            self._forget(self._last)

    def wait(self, waiting: int) -> int:
        """Whole seconds in which so many calls will have had their turn, as far as that can be known.

        Where none has ended lately it is as long as none has: who comes again in vain is told to wait longer.
        """
        now = self._clock()
        self._forget(now)
        seconds = waiting * min(RECENT, now - self._since) / len(self._ends) if self._ends else now - self._last
        spread = 1.0 + SPREAD * (2.0 * self._chance() - 1.0)
        return max(LEAST, min(MOST, math.ceil(spread * max(LEAST, min(MOST, seconds)))))

    def _forget(self, now: float) -> None:
        while self._ends and self._ends[0] <= now - RECENT:
            self._ends.popleft()
