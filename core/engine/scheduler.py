"""Who computes how much in the next step. Three kinds of rows share a budget of tokens, in this order:

* decoding rows, a token each: all of them in every step. They are never more than the budget, for each of them got
  a token in the step before. Some may have drafts besides, while the budget lasts;
* rows whose prompt is begun, then waiting sequences: as many tokens as the policy grants, in the order of their keys.

A sequence is admitted when a place is free and pages for all its known tokens can be had. When a decoding row
needs a page and none is left, the placed sequence with the last key is preempted: its pages go, its tokens stay, and it
waits at its old place in the order to be computed again. The placed sequence with the first key is never preempted for
another, so something always finishes.

A sequence whose pages were found elsewhere and are being copied is placed and held: it takes part when they have arrived, as
one whose prompt is begun. Nobody waits for a copy, unless nothing else is to be done. A row whose grammar is late is held too,
and nobody waits for that.

Prompts that are only read are computed one after the other, so one at a time is placed. The others wait in a queue of their
own, where they hold back nobody; for a place and for pages the first of them has its turn in the order as all have.

A step may be made while the one before is under way, and its tokens unknown. ``land`` reads that one first, and says whether
there was one: for steps that depend on its tokens (``_needs_host``), and where one that ends would make room.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from core.engine.batch import Step, build_step
from core.engine.block_manager import BlockManager
from core.engine.drafting import Drafting
from core.engine.rows import Ints, Rows, Sequence, SortKey
from core.errors import EngineDeadError
from core.interfaces.cache import Found
from core.interfaces.compute import Copying
from core.interfaces.scheduler import SchedulingPolicy, StepBudget

MOST_PASSED_OVER = 32
"""How many waiting sequences one step asks in vain, under a policy that lets later ones overtake."""


MOST_READ_BESIDE = 256
"""How many tokens of a prompt that is only read are computed between two steps of others."""


class Scheduler:
    def __init__(
        self,
        rows: Rows,
        blocks: BlockManager,
        policy: SchedulingPolicy,
        max_num_batched_tokens: int,
        land: Callable[[], bool],
        drafting: Drafting | None = None,
    ) -> None:
        self.num_preemptions = 0
        self.num_prompt_tokens = 0  # of all sequences ever admitted, each counted once
        self.num_cached_tokens = 0  # of these, found in the cache
        self._rows = rows
        self._blocks = blocks
        self._policy = policy
        self._land = land
        self._budget = max_num_batched_tokens
        self._drafting = drafting
        self._alike = blocks.alike
        self._waiting: list[Sequence] = []  # sorted by key
        self._to_read: list[Sequence] = []  # the same, of those that are only read
        self._reading: Sequence | None = None  # placed, and only read
        self._arriving: dict[str, tuple[Sequence, tuple[Copying, ...]]] = {}  # held sequences, by request id

    @property
    def num_waiting(self) -> int:
        return len(self._waiting) + len(self._to_read)

    def wait(self, sequence: Sequence) -> None:
        insort(self._queue(sequence), sequence, key=_key)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence wherever it is; a placed one gives back its row and pages."""
        if sequence.row >= 0:
            if self._drafting is not None:
                self._drafting.forget(sequence.request_id)
            self._arriving.pop(sequence.request_id, None)
            if self._reading is sequence:
                self._reading = None
            self._blocks.release(sequence.row)
            self._rows.vacate(sequence)
        else:
            queue = self._queue(sequence)
            del queue[bisect_left(queue, sequence.key, key=_key)]

    def _queue(self, sequence: Sequence) -> list[Sequence]:
        return self._waiting if sequence.read is None else self._to_read

    def schedule(self) -> Step | None:
        """The next step, or None when nobody is placed or waits, or all who are placed wait for their grammars or are read."""
        rows = self._rows
        self._release_arrived()
        self._grow_decoding()
        wanted = rows.wanted
        decoding = np.flatnonzero(wanted == 1)
        if self._needs_host(decoding) and self._land():
            return self.schedule()
        decoding, drafted = self._drafted(decoding)
        left = self._budget - len(decoding) - (0 if drafted is None else int(drafted.sum()))
        budget = StepBudget(total=self._budget, left=left, num_decodes=len(decoding))
        begun = sorted(rows.at(np.flatnonzero(wanted > 1)), key=_key)
        if not (begun or self.num_waiting or self._arriving):
            return self._step(decoding, [], drafted) if len(decoding) else None
        granted = self._prompts(begun, budget)
        if not granted and not len(decoding):
            if self._land():
                return self.schedule()
            if self.put_off() or self._reading is not None:
                return None
            if not self._arriving:
                # A policy that lets everybody wait while nothing runs would wait for ever: the first one goes on regardless.
                granted = self._prompts(begun[:1], budget, insist=True)
            if not granted and self._arriving:
                _, copies = next(iter(self._arriving.values()))
                for copy in copies:
                    copy.wait()
                return self.schedule()
            if not granted:
                raise EngineDeadError(
                    f"no page can be had for request {self._first_waiting().request_id} though nothing runs: "
                    f"{self._blocks.num_available} of {self._blocks.pool.total} are free or reclaimable"
                )
        return self._step(decoding, granted, drafted)

    def _needs_host(self, decoding: Ints) -> bool:
        """Whether what these rows compute next, or what may come of it, depends on tokens that a step under way will give.

        The last token itself is put in its place by the device. But penalties count tokens, the mask of a grammar follows from
        them, and so do drafts and the ends of words that may not be said: these steps are prepared when every token is known.
        """
        rows = self._rows
        drafts = self._drafting is not None and self._drafting.wants(len(decoding))
        return drafts or bool((rows.penalized[decoding] | rows.guided[decoding] | rows.wary[decoding]).any())

    def _drafted(self, decoding: Ints) -> tuple[Ints, Ints | None]:
        """Decoding rows, those with drafts last, and the number of each one's; None when nobody has any."""
        numbers = None if self._drafting is None else self._drafting.draft(decoding, self._budget - len(decoding))
        if numbers is None or not numbers.any():
            return decoding, None
        order = np.argsort(numbers > 0, kind="stable")
        return decoding[order], numbers[order]

    def _step(self, decoding: Ints, granted: list[tuple[int, int]], drafted: Ints | None) -> Step:
        ones = np.ones_like(decoding)
        if not granted and drafted is None:
            return build_step(self._rows, decoding, ones, len(decoding))
        chosen = np.array([row for row, _ in granted], np.int64)
        counts = np.array([number for _, number in granted], np.int64)
        rows, counts = np.concatenate([decoding, chosen]), np.concatenate([ones, counts])
        if drafted is None:
            return build_step(self._rows, rows, counts, len(decoding))
        single = int(np.count_nonzero(drafted == 0))
        return build_step(self._rows, rows, counts, single, np.concatenate([drafted, np.zeros_like(chosen)]))

    def _prompts(self, begun: list[Sequence], budget: StepBudget, insist: bool = False) -> list[tuple[int, int]]:
        """(row, tokens) for each prompt that computes something in this step; waiting sequences are placed on the way."""
        rows = self._rows
        granted: list[tuple[int, int]] = []
        for index, sequence in enumerate(begun):
            if not budget.left:
                return granted
            budget.num_behind = len(begun) - index - 1 + min(len(self._waiting), rows.num_free)
            row = sequence.row
            if tokens := self._grant(int(rows.length[row] - rows.computed[row]), budget, insist):
                granted.append((row, tokens))
            elif self._policy.keeps_order:
                return granted
        if insist and granted:
            return granted
        passed_over = awaiting = 0  # who awaits another's pages keeps a place, and holds back nobody
        while budget.left and rows.num_free > awaiting and passed_over < MOST_PASSED_OVER:
            following = self._next_waiting(passed_over + awaiting)
            if following is None:
                break
            sequence = following
            if self._alike is not None and not insist and self._alike.waits(sequence):
                awaiting += 1
                continue
            found = self._blocks.find(sequence)
            if found is None:
                break  # nobody overtakes a sequence that waits for pages, or a long one would wait for ever
            if sequence.read is not None:
                self._place(sequence, found)
                self._reading = sequence
                sequence.read.restart()
                continue
            if self._alike is not None and not insist and self._alike.finds(sequence, found.num_tokens):
                awaiting += 1
                continue
            budget.num_behind = min(len(self._waiting) - passed_over - awaiting, rows.num_free - awaiting) - 1
            spent = replace(budget) if found.arriving else budget  # who is held until copies are made spends nothing now
            if tokens := self._grant(len(sequence.tokens) - found.num_tokens, spent, insist):
                row, copies = self._place(sequence, found)
                if found.arriving:
                    rows.held[row] = True
                    self._arriving[sequence.request_id] = sequence, copies
                    continue
                granted.append((row, tokens))
                if insist:
                    break
                continue
            if self._policy.keeps_order:
                break
            passed_over += 1
        return granted

    def _next_waiting(self, index: int) -> Sequence | None:
        """The ``index``-th that waits to go on, or one to read that may be placed and is before it."""
        sequence = self._waiting[index] if index < len(self._waiting) else None
        if not self._to_read or self._reading is not None or (sequence is not None and sequence.key < self._to_read[0].key):
            return sequence
        return self._to_read[0]

    def _first_waiting(self) -> Sequence:
        return min((queue[0] for queue in (self._waiting, self._to_read) if queue), key=_key)

    def _place(self, sequence: Sequence, found: Found) -> tuple[int, tuple[Copying, ...]]:
        """Its row, and the copies that it has to wait for."""
        self.remove(sequence)
        row = self._rows.place(sequence, found.num_tokens)
        copies = self._blocks.attach(row, found)
        if sequence.num_cached < 0:
            sequence.num_cached = found.num_tokens
            self.num_prompt_tokens += sequence.num_prompt
            self.num_cached_tokens += found.num_tokens
        return row, copies

    def reading(self) -> tuple[Sequence, int] | None:
        """The placed sequence that is only read, and how many of its tokens may be computed now."""
        if self._reading is None:
            return None
        others = int(np.count_nonzero(self._rows.wanted))
        most = max(1, self._budget - others)
        return self._reading, min(most, MOST_READ_BESIDE) if others else most

    def put_off(self) -> list[Sequence]:
        """Sequences that are held until their grammar has said what may come next."""
        held = self._rows.held
        if not held.any():
            return []
        return [each for each in self._rows.at(np.flatnonzero(held)) if each.request_id not in self._arriving]

    def _release_arrived(self) -> None:
        """Let held sequences take part whose pages or masks have arrived, while the budget has a token for each."""
        rows = self._rows
        if not rows.held.any():
            return
        room = self._budget - int(np.count_nonzero(rows.wanted == 1))
        for sequence in self.put_off():
            if room > 0 and (sequence.guide is None or sequence.guide.ready):
                rows.held[sequence.row] = False
                room -= 1
        for name, (sequence, copies) in list(self._arriving.items()):
            if room > 0 and all(copy.done() for copy in copies):
                del self._arriving[name]
                rows.held[sequence.row] = False
                room -= 1

    def _grant(self, remaining: int, budget: StepBudget, insist: bool) -> int:
        most = min(remaining, budget.left)
        tokens = most if insist else max(0, min(most, self._policy.grant(remaining, budget)))
        if tokens:
            budget.left -= tokens
            budget.num_prefills += 1
            budget.num_partial += tokens < remaining
        return tokens

    def _grow_decoding(self) -> None:
        """See that every decoding row has a page for its next token, at the cost of those with later keys."""
        rows = self._rows
        needy = np.flatnonzero((rows.wanted == 1) & (rows.computed == rows.num_pages * rows.page_size))
        if not len(needy) or self._blocks.grow(needy):
            return
        if self._land():  # perhaps somebody has ended; and who is preempted goes with all tokens known
            self._grow_decoding()
            return
        for sequence in rows.at(needy):
            while sequence.row >= 0 and not self._blocks.grow(np.array([sequence.row])):
                self._preempt(max(rows.placed(), key=_key))

    def _preempt(self, sequence: Sequence) -> None:
        self.remove(sequence)
        self.wait(sequence)
        self.num_preemptions += 1


def _key(sequence: Sequence) -> SortKey:
    return sequence.key
