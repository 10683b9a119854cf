"""From rows and how many tokens each computes to the arrays of one step. No Python loop but over rows with adjusted logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from core.engine.guiding import PATIENCE, Guide
from core.engine.rows import Ints, Rows, Sequence
from core.interfaces.compute import LogitAdjustment, SamplingRows, StepBatch


@dataclass(slots=True)
class Step:
    """One step as the engine remembers it while the runner works: who took part, with how many tokens, who gets a new one."""

    rows: Ints  # [S], decodes first
    counts: Ints  # [S]
    before: Ints  # [S], computed tokens when the step began
    sampled: Ints  # [R] rows; one with drafts stands once for each of them and once more, in a row
    batch: StepBatch
    served: Ints  # [S], and [R]: ``Rows.served`` when the step was built; a row that says otherwise later is another's
    served_sampled: Ints
    num_pages: Ints  # [S]
    drafted: Ints | None = None  # [S] of the counts, tokens that are drafts, behind all that is known; None: nobody's are

    def continues(self, last: Step) -> bool:
        """Whether it is the step launched last, every row one token further and nothing else changed."""
        return (
            self.drafted is None
            and last.drafted is None
            and self.batch.num_decodes == self.batch.num_tokens == last.batch.num_decodes == last.batch.num_tokens
            and np.array_equal(self.rows, last.rows)
            and np.array_equal(self.served, last.served)
            and np.array_equal(self.num_pages, last.num_pages)
        )


def build_step(state: Rows, rows: Ints, counts: Ints, num_decodes: int, drafted: Ints | None = None) -> Step:
    """``counts`` has no drafts; those of ``drafted`` [S] lie in the rows' tokens behind their length."""
    page_size = state.page_size
    before = state.computed[rows]
    last = before + counts == state.length[rows]
    counts = counts if drafted is None else counts + drafted
    after = before + counts
    starts = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    if num_decodes == len(rows):
        owners, positions = rows, before
    else:
        owners = np.repeat(rows, counts)
        positions = np.arange(starts[-1]) + np.repeat(before - starts[:-1], counts)
    offsets = positions % page_size
    sampled, logit_rows, places = rows[last], starts[1:][last] - 1, None
    if drafted is not None:
        each = drafted[last] + 1
        places = np.arange(each.sum()) - np.repeat(np.cumsum(each) - each, each)
        sampled, logit_rows = np.repeat(sampled, each), np.repeat(logit_rows - drafted[last], each) + places
    batch = StepBatch(
        token_ids=state.tokens[owners, positions],
        positions=positions.astype(np.int32),
        slots=state.pages[owners, positions // page_size].astype(np.int64) * page_size + offsets,
        query_starts=starts.astype(np.int32),
        context_lens=after.astype(np.int32),
        page_table=state.pages[rows, : -(-int(after.max()) // page_size)],
        logit_rows=logit_rows,
        num_decodes=num_decodes,
        sampling=sampling_rows(state, sampled, places),
    )
    served = state.served[rows], state.served[sampled]
    return Step(rows, counts, before, sampled, batch, *served, state.num_pages[rows], drafted)


def sampling_rows(state: Rows, rows: Ints, places: Ints | None = None) -> SamplingRows:
    """``places``: how far behind its row's length each token will stand; 0 for all when left out."""
    temperature = state.temperature[rows]
    return SamplingRows(
        temperature=temperature,
        top_k=state.top_k[rows],
        top_p=state.top_p[rows],
        min_p=state.min_p[rows],
        seeds=state.seeds[rows],
        positions=state.length[rows] if places is None else state.length[rows] + places,
        logprobs=state.logprobs[rows],
        adjustment=_adjustment(state, rows),
        all_greedy=not temperature.any(),
    )


def _adjustment(state: Rows, rows: Ints) -> LogitAdjustment | None:
    biased = np.flatnonzero(state.biased[rows])
    early = state.length[rows] < state.min_length[rows]
    banned = np.flatnonzero(early | state.barred[rows])
    penalized = np.flatnonzero(state.penalized[rows])
    guided = np.flatnonzero(state.guided[rows])
    if not (len(biased) or len(banned) or len(penalized) or len(guided)):
        return None
    biasing, banning, seeing = state.at(rows[biased]), state.at(rows[banned]), state.at(rows[penalized])
    seen = [sequence.seen for sequence in seeing if sequence.seen is not None]
    bias_rows, bias_tokens = _flat(biased, [sequence.bias_tokens for sequence in biasing])
    banned_rows, banned_tokens = _flat(
        banned, [_banned(state, each, now) for each, now in zip(banning, early[banned], strict=True)]
    )
    seen_rows, seen_tokens = _flat(penalized, [one.tokens for one in seen])
    return LogitAdjustment(
        bias_rows=bias_rows,
        bias_tokens=bias_tokens,
        bias_values=_joined([sequence.bias_values for sequence in biasing], np.float32),
        banned_rows=banned_rows,
        banned_tokens=banned_tokens,
        seen_rows=seen_rows,
        seen_tokens=seen_tokens,
        seen_counts=_joined([one.counts for one in seen], np.float32),
        repetition=state.repetition[rows],
        presence=state.presence[rows],
        frequency=state.frequency[rows],
        masked_rows=guided.astype(np.int32),
        masks=_masks(state, [sequence.guide for sequence in state.at(rows[guided]) if sequence.guide is not None]),
    )


def _banned(state: Rows, sequence: Sequence, early: bool) -> NDArray[np.int32]:
    if sequence.barred is None:
        return sequence.banned
    row = sequence.row
    barred = sequence.barred.tokens(state.tokens[row, sequence.num_prompt : state.length[row]])
    return np.union1d(barred, sequence.banned) if early else barred


def _masks(state: Rows, guides: list[Guide]) -> Callable[[], NDArray[np.uint32]] | None:
    """One that broke allows everything: its row is in the step, and ends when its token is known. So does one that is late:
    its row sits out behind the step, and its token is dropped.
    """

    def stacked() -> NDArray[np.uint32]:
        everything = np.full(-(-state.vocab // 32), 0xFFFFFFFF, np.uint32)
        until = monotonic() + PATIENCE
        masks = [guide.mask(until) for guide in guides]
        return np.stack([everything if mask is None else mask for mask in masks])

    return stacked if guides else None


def _flat(places: Ints, lists: list[NDArray[np.int32]]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(which row, which token), one entry for each token of each list."""
    return np.repeat(places.astype(np.int32), [len(one) for one in lists]), _joined(lists, np.int32)


def _joined(arrays: list[NDArray[np.int32]] | list[NDArray[np.float32]], dtype: type) -> NDArray:  # type: ignore[type-arg]
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype)
