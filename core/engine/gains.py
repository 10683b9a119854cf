"""What rows gain by a step: noted as expected when it is launched, written down and told when its tokens are known."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from core.engine.batch import Step
from core.engine.block_manager import BlockManager
from core.engine.drafting import Drafting
from core.engine.reading import logprobs_of
from core.engine.rows import Ints, Rows, Sequence
from core.engine.stop import verdict
from core.interfaces.compute import Sampled
from core.interfaces.request import FinishReason, TokenEvent, TokenLogprobs


class End(Protocol):
    """Forget a sequence and make its last event."""

    def __call__(
        self,
        sequence: Sequence,
        reason: FinishReason,
        token_ids: list[int] | None = None,
        stop_token: int | None = None,
        logprobs: list[TokenLogprobs] | None = None,
        error: str = "",
    ) -> TokenEvent: ...


class Gains:
    """``num_tokens`` counts what was gained since the engine was made."""

    def __init__(self, rows: Rows, blocks: BlockManager, drafting: Drafting | None, end: End) -> None:
        self.num_tokens = 0
        self._rows = rows
        self._blocks = blocks
        self._drafting = drafting
        self._end = end

    def expect(self, step: Step) -> None:
        """The step is launched: its rows have their next token, though nobody knows which.

        In its place stands which of the step's tokens it will be, as a negative number (``StepBatch.token_ids``). How many
        tokens a row with drafts gains is not known beforehand, so that nothing is noted of a step with drafts.
        """
        if step.drafted is not None:
            return
        rows, taken = self._rows, step.sampled
        rows.computed[step.rows] = step.before + step.counts
        lengths = rows.length[taken]
        rows.tokens[taken, lengths] = np.arange(-1, -1 - len(taken), -1)
        rows.length[taken] = lengths + 1

    def take(self, step: Step, sampled: Sampled) -> list[TokenEvent]:
        """The tokens of a step, of whose rows some may have been vacated since, and taken by others."""
        if step.drafted is not None:
            return self._take_drafted(step, step.drafted, sampled)
        rows, taken = self._rows, step.sampled
        lengths, tokens = step.batch.sampling.positions, sampled.token_ids
        computed, before, after = step.rows, step.before, step.before + step.counts
        which: Ints | None = None  # of the sampled tokens those that somebody waits for; None: all
        here = rows.served[computed] == step.served
        late = self._put_off(step)
        if late is not None:
            rows.length[late] -= 1  # as if it had not been launched: they want to compute their last token again
            rows.computed[late] -= 1
            after = after - np.isin(computed, late)
        if late is not None or not here.all():
            computed, before, after = computed[here], before[here], after[here]
            which = np.flatnonzero((rows.served[taken] == step.served_sampled) & ~rows.held[taken])
            taken, lengths, tokens = taken[which], lengths[which], tokens[which]
        rows.tokens[taken, lengths] = tokens
        self._blocks.note_filled(computed, before, after)
        self.num_tokens += len(taken)
        events = [
            TokenEvent(sequence.request_id, [token], None, None, None, sequence.num_cached)
            for sequence, token in zip(rows.at(taken), tokens.tolist(), strict=True)
        ]
        # Nearly all rows are done here. What follows is for those that may end, and those of which more is to be noted.
        ending = (rows.stop_uses[tokens] > 0) | (lengths + 1 >= rows.limit[taken])
        noting = rows.penalized[taken] | rows.guided[taken] | (rows.logprobs[taken] >= 0)
        for index in np.flatnonzero(ending | noting).tolist():
            sequence = rows.sequences[taken[index]]
            assert sequence is not None
            place = index if which is None else int(which[index])
            events[index] = self._gained(sequence, int(lengths[index]), range(place, place + 1), sampled)
        return events

    def _take_drafted(self, step: Step, drafted: Ints, sampled: Sampled) -> list[TokenEvent]:
        """The same for a step of few rows, of which some may gain several tokens."""
        rows = self._rows
        assert self._drafting is not None
        gains = self._drafting.right(step, sampled.token_ids)
        late = self._put_off(step)
        if late is not None:
            gains = [range(0) if row in late else gain for row, gain in zip(step.rows.tolist(), gains, strict=True)]
        after = step.before + step.counts - drafted + np.array([max(0, len(gain) - 1) for gain in gains])
        if late is not None:
            after -= np.isin(step.rows, late)
        rows.computed[step.rows] = after
        sequences = rows.at(step.rows)
        lengths = rows.length[step.rows].tolist()
        for row, length, gain in zip(step.rows.tolist(), lengths, gains, strict=True):
            rows.tokens[row, length : length + len(gain)] = sampled.token_ids[gain]
            rows.length[row] = length + len(gain)
        self._blocks.note_filled(step.rows, step.before, after)
        events = [
            self._gained(sequence, length, gain, sampled)
            for sequence, length, gain in zip(sequences, lengths, gains, strict=True)
            if len(gain)
        ]
        self.num_tokens += sum(len(event.token_ids) for event in events)
        return events

    def _put_off(self, step: Step) -> Ints | None:
        """The rows that gain nothing by this step because their mask was late; they are held until they have it."""
        adjustment = step.batch.sampling.adjustment
        if adjustment is None or adjustment.masks is None:
            return None
        rows = self._rows
        guided = np.flatnonzero(rows.guided[step.sampled] & (rows.served[step.sampled] == step.served_sampled))
        late = [each.row for each in rows.at(step.sampled[guided]) if each.guide is not None and each.guide.late]
        rows.held[late] = True
        return np.array(late, np.int64) if late else None

    def _gained(self, sequence: Sequence, length: int, gain: range, sampled: Sampled) -> TokenEvent:
        """What a sequence of ``length`` tokens has to say of those it gained, up to the one that ends it."""
        wanted = int(self._rows.logprobs[sequence.row])
        tokens: list[int] = []
        logprobs: list[TokenLogprobs] | None = [] if wanted >= 0 else None
        for index in gain:
            tokens.append(int(sampled.token_ids[index]))
            if sequence.seen is not None:
                sequence.seen.add(tokens[-1])
            if logprobs is not None:
                logprobs.append(logprobs_of(sampled, index, wanted))
            reason, stop_token, error = _verdict(sequence, tokens[-1], length + len(tokens))
            if reason is not None:
                return self._end(sequence, reason, tokens, stop_token, logprobs, error)
        return TokenEvent(sequence.request_id, tokens, None, None, logprobs, sequence.num_cached)


def _verdict(sequence: Sequence, token: int, length: int) -> tuple[FinishReason | None, int | None, str]:
    """Why it ends with this token, if it does; the token that stopped it; what went wrong."""
    reason, stop_token = verdict(sequence, token, length)
    if sequence.guide is None or (reason == "stop" and not sequence.guide.error):
        return reason, stop_token, ""
    try:
        complete = sequence.guide.accept(token)
    except ValueError as error:
        return "error", None, str(error)
    return ("stop", None, "") if complete else (reason, stop_token, "")
