"""A grammar backend: which tokens may come next, so that an output is of a given form.

The engine makes a matcher on a thread beside its steps and admits the request when it is made. It asks for the allowed tokens
as soon as the last one is known, on a thread beside the step that needs them, and forbids all others before sampling. What
takes long holds up its own request alone, if it lets other threads run meanwhile. A matcher that can end nowhere but here ends
the request.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.interfaces.request import Grammar


@dataclass(frozen=True)
class Vocabulary:
    """What each token id says. ``special`` ids never stand for text; ``eos`` are those that end an output."""

    tokens: Sequence[bytes]
    special: frozenset[int]
    eos: tuple[int, ...]


class Matcher(ABC):
    """One output on its way through a grammar. Used by one thread at a time."""

    done: bool = False
    """Whether the output is complete and nothing may follow it."""

    @abstractmethod
    def allowed(self) -> NDArray[np.uint32]:
        """[ceil(V / 32)], bit ``t % 32`` of word ``t // 32`` set for each token that may come next; an eos token where the
        output may end. Never raises: a matcher in trouble allows everything, and says so in ``accept``.
        """

    @abstractmethod
    def accept(self, token: int) -> None:
        """This token came next. :raises ValueError: when it was not allowed, or the grammar is beyond the backend's limits."""


class GrammarBackend(ABC):
    @abstractmethod
    def attach(self, vocabulary: Callable[[], Vocabulary]) -> None:
        """Called once, before any request. To ask for the vocabulary takes long: do it on a thread of your own."""

    @abstractmethod
    def matcher(self, grammar: Grammar) -> Matcher:
        """A new matcher. Called by one thread at a time, which is not the engine's: a grammar that takes seconds makes only
        the grammars behind it wait, so bound it.

        :raises RequestError: for a grammar that cannot be read or is too large.
        """
