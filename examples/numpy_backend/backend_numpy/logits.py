"""What is done to logits [R, V] besides sampling."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from backend_numpy.attention import Floats
from core.interfaces.compute import LogitAdjustment


def adjust(logits: Floats, changes: LogitAdjustment) -> Floats:
    """In place: bias, penalties, bans, and what a grammar does not allow."""
    np.add.at(logits, (changes.bias_rows, changes.bias_tokens), changes.bias_values)
    rows, tokens, counts = changes.seen_rows, changes.seen_tokens, changes.seen_counts
    values, repetition = logits[rows, tokens], changes.repetition[rows]
    values = np.where(values > 0, values / repetition, values * repetition)
    logits[rows, tokens] = values - changes.frequency[rows] * counts - changes.presence[rows] * (counts > 0)
    logits[changes.banned_rows, changes.banned_tokens] = -np.inf
    if changes.masks is not None:
        logits[changes.masked_rows] = np.where(changes.allowed(logits.shape[1]), logits[changes.masked_rows], -np.inf)
    return logits


def logprobs(
    logits: Floats, token_ids: NDArray[np.int64], most: int
) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64], Floats]:
    """Among equal logits the lower id is the likelier one, in ranks and in the order of the top ids."""
    largest = logits.max(axis=1, keepdims=True)
    sums = largest + np.log(np.exp(logits - largest).sum(axis=1, keepdims=True))
    chosen = np.take_along_axis(logits, token_ids[:, None], axis=1)
    likelier = (logits > chosen) | ((logits == chosen) & (np.arange(logits.shape[1]) < token_ids[:, None]))
    best = np.argsort(-logits, axis=1, kind="stable")[:, :most] if most else np.zeros((len(logits), 0), np.int64)
    return (chosen - sums)[:, 0], likelier.sum(axis=1), best, np.take_along_axis(logits, best, axis=1) - sums
