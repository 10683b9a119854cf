"""Who waits for pages that another is computing: a page that will soon be found is not computed a second time.

Nothing is promised: whether somebody still computes what is waited for is looked at in every step, so that whoever
waited for one that ended, failed or lost its place goes on by itself.
"""

from __future__ import annotations

import numpy as np

from core.engine.rows import Rows, Sequence


class Alike:
    def __init__(self, rows: Rows, keeps_outputs: bool) -> None:
        self._rows = rows
        self._keeps_outputs = keeps_outputs

    def waits(self, sequence: Sequence) -> bool:
        """Whether what it was found to wait for is still on its way."""
        if sequence.awaited is None:
            return False
        other, tokens = sequence.awaited
        if other.row >= 0 and not self._put_off(other) and self._rows.told[other.row] < tokens:
            return True
        sequence.awaited = None
        return False

    def finds(self, sequence: Sequence, found: int) -> bool:
        """Whether somebody computes the page behind the first ``found`` tokens of one that waits; it is remembered who."""
        rows, size, tokens = self._rows, self._rows.page_size, sequence.tokens
        most = (len(tokens) - 1) // size * size  # the last token is computed in any case
        if most <= found:
            return False
        # A page that the policy was told of and that is not found will not be.
        for row in np.flatnonzero((rows.length >= found + size) & (rows.told <= found)).tolist():
            other = rows.sequences[row]
            if other is None or other.read is not None or self._put_off(other):
                continue
            if other.request.cache_salt != sequence.request.cache_salt:
                continue
            known = int(rows.length[row] if self._keeps_outputs else min(rows.length[row], rows.num_prompt[row]))
            number = min(most, known)
            if number < found + size or (rows.tokens[row, found : found + size] != tokens[found : found + size]).any():
                continue
            different = np.flatnonzero(rows.tokens[row, :number] != tokens[:number])
            shared = (int(different[0]) if len(different) else number) // size * size
            if shared > found:
                sequence.awaited = other, shared
                return True
        return False

    def _put_off(self, other: Sequence) -> bool:
        """It waits for its grammar, and nobody knows how long."""
        return bool(self._rows.held[other.row]) and other.guide is not None
