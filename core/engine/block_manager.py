"""Gives rows their KV pages and takes them back. Which pages are shared or kept is the cache policy's affair, how many may
be given to newcomers and how many to those who grow is the block policy's.

At any time ``free + used + kept == total``: used by rows, or kept by the policy though no row uses them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from core.engine.alike import Alike
from core.engine.rows import Ints, Rows, Sequence
from core.interfaces.blocks import BlockPolicy, PoolUse
from core.interfaces.cache import CachePolicy, Found, PagePool
from core.interfaces.compute import Copying

NOTHING = Found(0)


class BlockManager:
    """A row gets the pages of all its known tokens when it is admitted, so only decoding rows ever grow, a page at a time."""

    def __init__(self, num_pages: int, policy: CachePolicy, division: BlockPolicy, rows: Rows) -> None:
        self.pool = PagePool(num_pages, rows.page_size)
        self._policy = policy
        self._division = division
        self._rows = rows
        self._kept_since = 0  # counts the calls by which what the policy keeps may have changed
        self._used: PoolUse | None = None  # None: pages have changed hands
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

    def find(self, sequence: Sequence) -> Found | None:
        """What is kept of a waiting sequence, if the other pages that it needs can be had, or None. It changes nothing."""
        found = self._found(sequence)
        missing = self._pages_at_admission(len(sequence.tokens), sequence.limit) - found.num_tokens // self.pool.page_size
        use = self._use()
        if found.room:
            use = replace(use, available=use.available - found.room)
        return found if missing <= self._division.for_admission(use) else None

    def _found(self, sequence: Sequence) -> Found:
        """The policy is asked again only when it may have something else to say."""
        if sequence.read is not None:
            return NOTHING  # all of its tokens are computed
        if sequence.found is None or sequence.found_since != self._kept_since:
            sequence.found = self._policy.find(sequence.tokens, sequence.request.cache_salt, sequence.found)
            sequence.found_since = self._kept_since
            tokens = sequence.found.num_tokens
            if tokens % self.pool.page_size or tokens >= len(sequence.tokens):
                raise RuntimeError(
                    f"cache policy {type(self._policy).__name__} found {tokens} of {len(sequence.tokens)} tokens in pages of "
                    f"{self.pool.page_size}: it finds whole pages and leaves a token to compute"
                )
        return sequence.found

    def _use(self) -> PoolUse:
        if self._used is None:
            rows = self._rows
            growing = np.count_nonzero((rows.num_pages > 0) & (rows.num_pages < rows.most_pages))
            self._used = PoolUse(self.pool.total, self.num_available, int(rows.num_grown.sum()), int(growing))
        return self._used

    def _changed(self) -> None:
        self._kept_since += 1
        self._used = None

    def _pages_at_admission(self, known: int, limit: int) -> int:
        """``limit``: the length at which the sequence ends; its last token is never computed."""
        size = self.pool.page_size
        pages = -(-known // size)
        return max(pages, min(pages + self._division.ahead, -(-(limit - 1) // size)))

    def attach(self, row: int, found: Found) -> tuple[Copying, ...]:
        """The pages of a row that was just placed: those found, and fresh ones for the rest of its tokens.

        The copies that must be done before it is computed.
        """
        rows, start = self._rows, 0
        copies: tuple[Copying, ...] = ()
        if found.num_tokens:
            hit = self._policy.take(found)
            copies, start = hit.arriving, len(hit.pages)
            if start * self.pool.page_size != found.num_tokens:
                raise RuntimeError(
                    f"cache policy {type(self._policy).__name__} found {found.num_tokens} tokens and gave {start} pages of "
                    f"{self.pool.page_size} for them"
                )
            rows.pages[row, :start] = hit.pages
        number = self._pages_at_admission(int(rows.length[row]), int(rows.limit[row]))
        if not self._make_room(number - start):
            raise RuntimeError(f"{number - start} pages were promised by find and cannot be had")
        rows.pages[row, start:number] = self.pool.take(number - start)
        rows.num_pages[row] = number
        self._changed()
        return copies

    def grow(self, rows: Ints) -> bool:
        """One more page for each of ``rows``, or False and nothing done when there are not so many."""
        if len(rows) > self._division.for_growth(self._use()) or not self._make_room(len(rows)):
            return False
        state = self._rows
        state.pages[rows, state.num_pages[rows]] = self.pool.take(len(rows))
        state.num_pages[rows] += 1
        state.num_grown[rows] += 1
        self._used = None
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
            self._changed()

    def release(self, row: int) -> None:
        state = self._rows
        number = state.num_pages[row]
        self._policy.leave(state.pages[row, :number].copy())
        state.pages[row, :number] = 0
        state.num_pages[row] = state.num_grown[row] = 0
        self._changed()

    def _make_room(self, wanted: int) -> bool:
        short = wanted - self.pool.num_free
        if short > 0:
            self._policy.reclaim(short)
            self._changed()
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
