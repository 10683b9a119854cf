"""Drafts in the engine: who may have some, and which of the tokens sampled with them count."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from core.engine.batch import Step
from core.engine.rows import Ints, Rows
from core.interfaces.drafts import DraftProposer


class Drafting:
    """``num_proposed`` and ``num_accepted`` count drafts since the engine was made."""

    def __init__(self, rows: Rows, proposer: DraftProposer) -> None:
        self.num_proposed = 0
        self.num_accepted = 0
        self._rows = rows
        self._proposer = proposer

    def wants(self, number: int) -> bool:
        """Whether a step of so many decoding rows may have drafts."""
        return 0 < number <= self._proposer.most_rows

    def draft(self, decoding: Ints, budget: int) -> Ints:
        """How many drafts each decoding row has in this step, at most ``budget`` in all; written behind its tokens.

        A draft needs a place in the pages that its row has: none is taken for a guess.
        """
        rows, proposer = self._rows, self._proposer
        numbers = np.zeros(len(decoding), np.int64)
        if not self.wants(len(decoding)):
            return numbers
        length = rows.length[decoding]
        room = np.minimum(rows.num_pages[decoding] * rows.page_size, rows.limit[decoding] - 1) - length
        alone = ~(rows.penalized[decoding] | rows.guided[decoding] | rows.barred[decoding])
        able = alone & (length >= rows.min_length[decoding]) & (room > 0)
        for index in np.flatnonzero(able).tolist():
            row, known = int(decoding[index]), int(length[index])
            most = min(proposer.most, int(room[index]), budget)
            if most <= 0:
                continue
            sequence = rows.sequences[row]
            assert sequence is not None
            drafts = proposer.propose(sequence.request_id, rows.tokens[row, :known], most)
            if not 0 <= len(drafts) <= most:
                raise RuntimeError(f"draft proposer {type(proposer).__name__} gave {len(drafts)} tokens, {most} were asked for")
            rows.tokens[row, known : known + len(drafts)] = drafts
            numbers[index] = len(drafts)
            budget -= len(drafts)
        self.num_proposed += int(numbers.sum())
        return numbers

    def right(self, step: Step, sampled: NDArray[np.int64]) -> list[range]:
        """For each row of the step the sampled tokens that count, as indices; none where a prompt goes on."""
        rows = self._rows
        assert step.drafted is not None
        known = rows.length[step.rows]
        samples = step.before + step.counts - step.drafted == known
        gains, first = [], 0
        for index, row in enumerate(step.rows.tolist()):
            if not samples[index]:
                gains.append(range(0))
                continue
            length, number = int(known[index]), int(step.drafted[index])
            accepted = _alike(sampled[first : first + number], rows.tokens[row, length : length + number])
            gains.append(range(first, first + accepted + 1))
            first += number + 1
            if number:
                self.num_accepted += accepted
                sequence = rows.sequences[row]
                assert sequence is not None
                self._proposer.observe(sequence.request_id, number, accepted)
        return gains

    def forget(self, request_id: str) -> None:
        self._proposer.forget(request_id)


def _alike(sampled: NDArray[np.int64], drafts: NDArray[np.int32]) -> int:
    """How many are equal from the first on."""
    differs = np.flatnonzero(sampled != drafts)
    return int(differs[0]) if len(differs) else len(drafts)
