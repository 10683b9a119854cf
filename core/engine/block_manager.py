"""Gives rows their KV pages and takes them back. Which pages are shared or kept is the cache policy's affair, how many may
be given to newcomers and how many to those who grow is the block policy's.

At any time ``free + used + kept == total``: used by rows, or kept by the policy though no row uses them.
"""

from __future__ import annotations

import numpy as np

from core.engine.alike import Alike
from core.engine.rows import Ints, Rows, Sequence
from core.interfaces.blocks import BlockPolicy, PoolUse
from core.interfaces.cache import CachePolicy, Hit, PagePool


class BlockManager:
    """A row gets the pages of all its known tokens when it is admitted, so only decoding rows ever grow, a page at a time."""

    def __init__(self, num_pages: int, policy: CachePolicy, division: BlockPolicy, rows: Rows) -> None:
        self.pool = PagePool(num_pages, rows.page_size)
        self._policy = policy
        self._division = division
        self._rows = rows
        policy.attach(self.pool)

    @property
    def alike(self) -> Alike | None:
        """None where a page that is full can be found by nobody else."""
        return Alike(self._rows, self._policy.keeps_outputs) if self._policy.shares else None

    @property
    def num_available(self) -> int:
        return self.pool.num_free + self._policy.num_reclaimable

    @property
    def num_kept(self) -> int:
        return self._policy.num_reclaimable

    def find(self, sequence: Sequence) -> Hit | None:
        """The pages that already hold a prefix of a waiting sequence, if the others that it needs can be had, or None."""
        if sequence.pages_missed > self._division.for_admission(self._use()):
            return None  # looking again would find nothing new: what it missed has not become free
        if sequence.read is None:
            hit = self._policy.lookup(sequence.tokens, sequence.request.cache_salt)
        else:
            hit = Hit(np.zeros(0, np.int32), 0)  # all of its tokens are computed
        if hit.num_tokens != len(hit.pages) * self.pool.page_size or hit.num_tokens >= len(sequence.tokens):
            raise RuntimeError(
                f"cache policy {type(self._policy).__name__} found {hit.num_tokens} of {len(sequence.tokens)} tokens in "
                f"{len(hit.pages)} pages of {self.pool.page_size}: a hit is whole pages and leaves a token to compute"
            )
        missing = self._pages_at_admission(len(sequence.tokens), sequence.limit) - len(hit.pages)
        fits = missing <= self._division.for_admission(self._use())  # anew: the hit's own pages are no longer reclaimable
        sequence.pages_missed = 0 if fits else missing
        if fits:
            return hit
        self.give_back(hit)
        return None

    def _use(self) -> PoolUse:
        rows = self._rows
        growing = np.count_nonzero((rows.num_pages > 0) & (rows.num_pages < rows.most_pages))
        return PoolUse(self.pool.total, self.num_available, int(rows.num_grown.sum()), int(growing))

    def _pages_at_admission(self, known: int, limit: int) -> int:
        """``limit``: the length at which the sequence ends; its last token is never computed."""
        size = self.pool.page_size
        pages = -(-known // size)
        return max(pages, min(pages + self._division.ahead, -(-(limit - 1) // size)))

    def give_back(self, hit: Hit) -> None:
        """A found sequence is not admitted after all."""
        self._policy.leave(hit.pages)

    def attach(self, row: int, hit: Hit) -> None:
        """The pages of a row that was just placed: those found, and fresh ones for the rest of its tokens."""
        rows = self._rows
        found = len(hit.pages)
        number = self._pages_at_admission(int(rows.length[row]), int(rows.limit[row]))
        if not self._make_room(number - found):
            raise RuntimeError(f"{number - found} pages were promised by find and cannot be had")
        rows.pages[row, :found] = hit.pages
        rows.pages[row, found:number] = self.pool.take(number - found)
        rows.num_pages[row] = number

    def grow(self, rows: Ints) -> bool:
        """One more page for each of ``rows``, or False and nothing done when there are not so many."""
        if len(rows) > self._division.for_growth(self._use()) or not self._make_room(len(rows)):
            return False
        state = self._rows
        state.pages[rows, state.num_pages[rows]] = self.pool.take(len(rows))
        state.num_pages[rows] += 1
        state.num_grown[rows] += 1
        return True

    def note_filled(self, rows: Ints, before: Ints, after: Ints) -> None:
        """Tell the policy of the pages that this step has filled; ``before`` and ``after`` count computed tokens."""
        state, size = self._rows, self.pool.page_size
        if not self._policy.keeps_outputs:
            after = np.minimum(after, state.num_prompt[rows])
        first, full = before // size, after // size
        state.told[rows] = np.maximum(state.told[rows], full * size)
        for index in np.flatnonzero(full > first).tolist():
            row, number = int(rows[index]), int(full[index])
            sequence = state.sequences[row]
            assert sequence is not None
            self._policy.filled(
                state.tokens[row, : number * size], state.pages[row, :number], int(first[index]), sequence.request.cache_salt
            )

    def release(self, row: int) -> None:
        state = self._rows
        number = state.num_pages[row]
        self._policy.leave(state.pages[row, :number].copy())
        state.pages[row, :number] = 0
        state.num_pages[row] = state.num_grown[row] = 0

    def _make_room(self, wanted: int) -> bool:
        short = wanted - self.pool.num_free
        if short > 0:
            self._policy.reclaim(short)
        return self.pool.num_free >= wanted

    def close(self) -> None:
        self._policy.close()

    def check(self) -> None:
        """Whether every page is accounted for. For tests: it looks at all of them."""
        state, pool = self._rows, self.pool
        owners = np.zeros(pool.total, np.int64)
        for row in range(state.number):
            number = int(state.num_pages[row])
            own = state.pages[row, :number]
            if len(np.unique(own)) != number or state.pages[row, number:].any():
                raise RuntimeError(f"the page table of row {row} is damaged: {state.pages[row].tolist()}")
            if number * pool.page_size < state.computed[row] or (number > 0) != (state.sequences[row] is not None):
                raise RuntimeError(f"row {row} holds {number} pages for {state.computed[row]} tokens")
            owners[own] += 1
        if (pool.counts < owners).any():
            raise RuntimeError(f"pages {np.flatnonzero(pool.counts < owners).tolist()} have more owners than they count")
        free, used = int(np.count_nonzero(pool.counts == 0)), int(np.count_nonzero(owners))
        if free != pool.num_free or free + used + self.num_kept != pool.total:
            raise RuntimeError(
                f"{pool.num_free} pages free ({free} unowned) + {used} used + {self.num_kept} kept are not {pool.total}"
            )
