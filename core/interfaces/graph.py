"""A graph backend: how a step's operations are launched. Eager runs them; a capturing one records them once and replays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

Forward = Callable[[Any], Any]
"""One model step: takes what ``ComputeBackend.upload`` returned, gives float32 logits [R, V]."""


class GraphBackend(ABC):
    @abstractmethod
    def prepare(self, forward: Forward) -> Forward:
        """What the runner calls instead of ``forward`` from now on. Same arguments, same values."""

    def describe(self) -> str:
        """One line for people: sizes captured, memory taken."""
        return type(self).__name__
