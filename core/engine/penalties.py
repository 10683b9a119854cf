"""The tokens a penalized request has seen, kept as it grows instead of being counted again every step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Seen:
    """Distinct tokens with their occurrences in the output: 0 for those of the prompt alone.

    ``prompt`` may be left empty when only output counts (presence and frequency; repetition needs the prompt).
    """

    def __init__(self, prompt: NDArray[np.int32]) -> None:
        distinct = np.unique(prompt)
        self._size = len(distinct)
        self._tokens = np.empty(max(16, 2 * self._size), np.int32)
        self._tokens[: self._size] = distinct
        self._counts = np.zeros(len(self._tokens), np.float32)
        self._places = {token: place for place, token in enumerate(distinct.tolist())}

    @property
    def tokens(self) -> NDArray[np.int32]:
        return self._tokens[: self._size]

    @property
    def counts(self) -> NDArray[np.float32]:
        return self._counts[: self._size]

    def add(self, token: int) -> None:
        place = self._places.setdefault(token, self._size)
        if place == self._size:
            if place == len(self._tokens):
                self._tokens = np.concatenate([self._tokens, np.empty_like(self._tokens)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._tokens[place] = token
            self._size += 1
        self._counts[place] += 1
