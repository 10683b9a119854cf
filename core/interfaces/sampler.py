"""A sampler: logits and each row's parameters in, one token id a row out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from core.interfaces.compute import Array, SamplingRows


class Sampler(ABC):
    """Stateless: all randomness comes from ``rows.seeds`` and ``rows.positions``.

    ``graph_safe`` says that ``sample`` neither waits for the device nor depends on values for its control flow, so that
    a graph backend may capture it.
    """

    graph_safe: bool = False

    @abstractmethod
    def sample(self, logits: Array, rows: SamplingRows) -> Array:
        """Draw one token for each row.

        :param logits: float32 [R, V] on the backend's device, penalties and bans already applied; may be overwritten.
            -inf entries must never be drawn. A row that holds NaN, or nothing finite, falls to its argmax.
        :param rows: per-row parameters; rows with temperature 0 take their argmax.
        :returns: int64 [R] on the same device. Equal seed, position and logits give the equal token, whatever the batch.
        """

    def warm(self, vocab: int, device: Any) -> None:  # noqa: B027
        """Compile or allocate before the first request."""
