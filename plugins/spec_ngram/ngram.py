"""Drafts by lookup: find where the last few tokens stood before, and propose what followed them there.

After "prompt lookup decoding" (A. Saxena, 2023), with a draft length that follows its success.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.interfaces.drafts import DraftProposer

WINDOW = 16_384  # tokens looked through: about ten microseconds
MEMORY = 0.8  # of a request's share of right guesses, from one draft to the next
FIRST_PAUSE, LONGEST_PAUSE = 16, 1024  # tokens


@dataclass(slots=True)
class Luck:
    """How a request's guesses have turned out. ``length``: of its next draft. ``rest``: tokens until it may be drafted for."""

    length: int
    share: float = 1.0
    pause: int = FIRST_PAUSE
    rest: int = 0


class NgramProposer(DraftProposer):
    def __init__(self, most: int, most_rows: int, largest: int, smallest: int, least_right: float) -> None:
        """``largest``, ``smallest``: tokens that must be found again. ``least_right``: the share of right guesses below which a
        request is left alone for a while, twice as long each time.
        """
        self.most = most
        self.most_rows = most_rows
        self._largest, self._smallest = largest, smallest
        self._least_right = least_right
        self._lucks: dict[str, Luck] = {}

    def propose(self, request_id: str, tokens: NDArray[np.int32], most: int) -> NDArray[np.int32]:
        luck = self._lucks.get(request_id)
        if luck is None:
            luck = self._lucks[request_id] = Luck(self.most)
        if luck.rest:
            luck.rest -= 1
            return tokens[:0]
        return continuation(tokens[-WINDOW:], self._largest, self._smallest, min(most, luck.length))

    def observe(self, request_id: str, proposed: int, accepted: int) -> None:
        luck = self._lucks[request_id]
        luck.length = min(self.most, 2 * proposed) if accepted == proposed else accepted + 1
        luck.share = MEMORY * luck.share + (1 - MEMORY) * accepted / proposed
        if luck.share < self._least_right:
            luck.rest, luck.pause = luck.pause, min(2 * luck.pause, LONGEST_PAUSE)
            luck.share, luck.length = 1.0, 1
        elif accepted == proposed == self.most:
            luck.pause = FIRST_PAUSE

    def forget(self, request_id: str) -> None:
        self._lucks.pop(request_id, None)


def continuation(tokens: NDArray[np.int32], largest: int, smallest: int, most: int) -> NDArray[np.int32]:
    """``most`` tokens after the last earlier place of as many of the last tokens as possible, or none.

    Where that place is so near the end that less than ``most`` follow, what lies between is taken to go on repeating.
    """
    last = len(tokens) - 1
    found = np.flatnonzero(tokens[:last] == tokens[last])
    best = found if smallest <= 1 else found[:0]
    for size in range(2, largest + 1):
        found = found[found >= size - 1]
        found = found[tokens[found - (size - 1)] == tokens[last - (size - 1)]] if last >= size - 1 else found[:0]
        if not len(found):
            break
        if size >= smallest:
            best = found
    if not len(best) or most < 1:
        return tokens[:0]
    place = int(best[-1])
    return tokens[place + 1 + np.arange(most) % (last - place)]
