"""A sampler of another framework than the compute backend's: arrays are lent both ways through DLPack, without a copy."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from core.interfaces.compute import Array, SamplingRows
from core.interfaces.sampler import Sampler


class LentLogits(Sampler):
    """Both frameworks are modules with a ``from_dlpack``, named by what was composed: none is known here."""

    def __init__(self, sampler: Sampler, own: str, theirs: str) -> None:
        """``own``: the backend's framework; ``theirs``: the sampler's."""
        self._sampler = sampler
        self._lend = import_module(theirs).from_dlpack
        self._take = import_module(own).from_dlpack

    def __str__(self) -> str:
        return str(self._sampler)

    def sample(self, logits: Array, rows: SamplingRows) -> Array:
        return self._take(self._sampler.sample(self._lend(logits), rows))

    def warm(self, vocab: int, device: Any) -> None:
        self._sampler.warm(vocab, device)
