"""A sampler: logits and each row's parameters in, one token id a row out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from core.interfaces.compute import Array, SamplingArrays, SamplingRows

Draw = Callable[[Array, SamplingArrays], Array]
"""Logits [R, V], which are left as they are, and parameters -> int64 [R], the very tokens that ``sample`` gives.

Nothing in it waits for the device, and what is launched depends on R and V alone: it may be recorded, and replayed when its
arrays hold something else. Some rows may be padding: any logits, temperature 0, a token that nobody looks at.
"""


class Sampler(ABC):
    """Stateless: all randomness comes from ``rows.seeds`` and ``rows.positions``."""

    def __str__(self) -> str:
        """As messages name it."""
        return f"{type(self).__module__}.{type(self).__qualname__}"

    @abstractmethod
    def sample(self, logits: Array, rows: SamplingRows) -> Array:
        """Draw one token for each row.

        :param logits: float32 [R, V] on the backend's device, penalties and bans already applied; may be overwritten.
            -inf entries must never be drawn. A row that holds NaN, or nothing finite, falls to its argmax.
        :param rows: per-row parameters; rows with temperature 0 take their argmax.
        :returns: int64 [R] on the same device. Equal seed, position and logits give the equal token, whatever the batch.
        """

    def on_device(self, device: Any) -> Draw | None:
        """A way to draw on this device without the host, as a part of recorded steps; None: ``sample`` after each step."""
        return None

    def warm(self, vocab: int, device: Any) -> None:  # noqa: B027
        """Compile or allocate before the first request."""
