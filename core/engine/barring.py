"""Sequences of tokens that an output never has: of each, the last token is banned where the others have just been generated."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from core.interfaces.request import SamplingParams

Tokens = NDArray[np.int32]


class Barred:
    def __init__(self, words: tuple[tuple[int, ...], ...]) -> None:
        self._always = np.array(sorted({word[0] for word in words if len(word) == 1}), np.int32)
        self._longer = [(np.array(word[:-1], np.int32), word[-1]) for word in words if len(word) > 1]

    @classmethod
    def of(cls, params: SamplingParams) -> Barred | None:
        return cls(params.bad_words) if params.bad_words else None

    @property
    def follows_tokens(self) -> bool:
        """Whether what is banned depends on what has been generated."""
        return bool(self._longer)

    def tokens(self, generated: Tokens) -> Tokens:
        """What may not come next."""
        ends = [last for first, last in self._longer if np.array_equal(generated[-len(first) :], first)]
        return np.union1d(self._always, np.array(ends, np.int32)) if ends else self._always
