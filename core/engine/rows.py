"""The state of every request that holds a place: one row each, one array per property.

A step is then built and committed with a handful of array operations, whatever the number of requests.
Nothing here decides anything; the scheduler and the block manager do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.engine.barring import Barred
from core.engine.guiding import Guide
from core.engine.penalties import Seen
from core.engine.reading import Read
from core.interfaces.cache import Found
from core.interfaces.request import Request

Ints = NDArray[np.int64]
Tokens = NDArray[np.int32]
SortKey = tuple[tuple[float, ...], int]


@dataclass(slots=True, eq=False)
class Sequence:
    """One request from ``Engine.add`` to its last event: what does not change, and what outlives a preemption.

    ``tokens`` is everything known so far while the sequence waits; while it holds a row, the row has the newer ones.
    """

    request_id: str
    request: Request
    key: SortKey  # (the policy's order, arrival): smaller runs earlier, survives longer
    tokens: Tokens
    num_prompt: int
    limit: int  # the length, prompt included, at which it ends with "length"
    min_length: int  # below it no stop counts
    seed: int
    stops: frozenset[int]
    stop_ids: Tokens  # the same as an array
    banned: Tokens  # what may not be sampled below ``min_length``
    bias_tokens: Tokens
    bias_values: NDArray[np.float32]
    seen: Seen | None  # only when penalized
    guide: Guide | None = None  # only when its output has a given form
    read: Read | None = None  # only when its prompt is read and not gone on with
    barred: Barred | None = None  # only when there are words it may not say
    row: int = -1  # -1: waits
    num_cached: int = -1  # prompt tokens found in the cache when first admitted; -1: never admitted
    awaited: tuple[Sequence, int] | None = None  # who computes pages that it can use, and how many of its tokens they hold
    found: Found | None = None  # while it waits, what the cache policy last had of its tokens
    found_since: int = 0  # and when that was: ``BlockManager`` counts


class Rows:
    """``length`` counts known tokens, ``computed`` those whose K and V are in the cache. A free row has 0 for both.

    The last token of a row may be one that a step under way will give: it is known to be there, not which it is.
    ``wanted`` is how many tokens a row wants to compute: 1 it decodes, more: its prompt is being computed.
    Who is only read is at its ``limit`` from the start.
    ``held`` rows wait for copies of pages that were found for them and want nothing until then; a row at its ``limit`` wants
    nothing more, and leaves when its last token is known. ``served`` counts who has left a row: a step can tell who is gone.
    """

    def __init__(self, number: int, max_len: int, page_size: int, vocab: int) -> None:
        self.number = number
        self.page_size = page_size
        self.tokens: Tokens = np.zeros((number, max_len), np.int32)  # memory is touched, and so taken, only where used
        self.pages: NDArray[np.int32] = np.zeros((number, -(-max_len // page_size)), np.int32)  # 0 behind a row's own
        self.num_pages: Ints = np.zeros(number, np.int64)
        self.num_grown: Ints = np.zeros(number, np.int64)  # of these, given since it was placed
        self.most_pages: Ints = np.zeros(number, np.int64)  # what it will hold when it reaches its limit
        self.num_prompt: Ints = np.zeros(number, np.int64)
        self.length: Ints = np.zeros(number, np.int64)
        self.computed: Ints = np.zeros(number, np.int64)
        self.told: Ints = np.zeros(number, np.int64)  # of these, in pages that the cache policy was told of or found
        self.served: Ints = np.zeros(number, np.int64)
        self.held: NDArray[np.bool_] = np.zeros(number, np.bool_)
        self.limit: Ints = np.zeros(number, np.int64)
        self.min_length: Ints = np.zeros(number, np.int64)
        self.temperature: NDArray[np.float32] = np.zeros(number, np.float32)
        self.top_k: NDArray[np.int32] = np.zeros(number, np.int32)
        self.top_p: NDArray[np.float32] = np.ones(number, np.float32)
        self.min_p: NDArray[np.float32] = np.zeros(number, np.float32)
        self.seeds: NDArray[np.uint64] = np.zeros(number, np.uint64)
        self.logprobs: NDArray[np.int32] = np.full(number, -1, np.int32)
        self.repetition: NDArray[np.float32] = np.ones(number, np.float32)
        self.presence: NDArray[np.float32] = np.zeros(number, np.float32)
        self.frequency: NDArray[np.float32] = np.zeros(number, np.float32)
        self.penalized: NDArray[np.bool_] = np.zeros(number, np.bool_)
        self.biased: NDArray[np.bool_] = np.zeros(number, np.bool_)
        self.guided: NDArray[np.bool_] = np.zeros(number, np.bool_)
        self.barred: NDArray[np.bool_] = np.zeros(number, np.bool_)  # something may not be said
        self.wary: NDArray[np.bool_] = np.zeros(number, np.bool_)  # and what, depends on what has been
        self.sequences: list[Sequence | None] = [None] * number
        # How many rows stop at each token: a token with 0 ends nobody, which settles nearly every token at once.
        self.stop_uses: NDArray[np.int32] = np.zeros(vocab, np.int32)
        self.vocab = vocab
        self._free = list(range(number - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.number - len(self._free)

    @property
    def wanted(self) -> Ints:
        return np.where(self.held | (self.length >= self.limit), 0, self.length - self.computed)

    def placed(self) -> list[Sequence]:
        return [sequence for sequence in self.sequences if sequence is not None]

    def at(self, rows: Ints) -> list[Sequence]:
        """The sequences of rows in use."""
        sequences = self.sequences
        return [sequences[row] for row in rows.tolist()]

    def place(self, sequence: Sequence, computed: int) -> int:
        """Give ``sequence`` a row; its pages are the block manager's to attach."""
        row = self._free.pop()
        params = sequence.request.params
        known = len(sequence.tokens)
        self.tokens[row, :known] = sequence.tokens
        self.num_prompt[row] = sequence.num_prompt
        self.length[row] = known
        self.computed[row] = self.told[row] = computed
        self.limit[row] = sequence.limit
        self.most_pages[row] = -(-(sequence.limit - 1) // self.page_size)  # the last token is never computed
        self.min_length[row] = sequence.min_length
        self.temperature[row] = 0.0 if params.greedy else params.temperature
        self.top_k[row] = params.top_k if params.top_k < self.vocab else 0
        self.top_p[row] = params.top_p
        self.min_p[row] = params.min_p
        self.seeds[row] = sequence.seed
        self.logprobs[row] = -1 if params.logprobs is None else params.logprobs
        self.repetition[row] = params.repetition_penalty
        self.presence[row] = params.presence_penalty
        self.frequency[row] = params.frequency_penalty
        self.penalized[row] = params.penalized
        self.biased[row] = len(sequence.bias_tokens) > 0
        self.guided[row] = sequence.guide is not None
        self.barred[row] = sequence.barred is not None
        self.wary[row] = sequence.barred is not None and sequence.barred.follows_tokens
        self.stop_uses[sequence.stop_ids] += 1
        self.sequences[row] = sequence
        sequence.row = row
        sequence.found = None  # it may wait again with other tokens
        return row

    def vacate(self, sequence: Sequence) -> None:
        """Take the row back; the sequence keeps its tokens. Its pages have been given back before."""
        row = sequence.row
        sequence.tokens = self.tokens[row, : self.length[row]].copy()
        sequence.row = -1
        self.length[row] = self.computed[row] = self.told[row] = 0
        self.held[row] = False
        self.served[row] += 1
        self.stop_uses[sequence.stop_ids] -= 1
        self.sequences[row] = None
        self._free.append(row)
