"""The engine: requests in, tokens out, one step at a time. It knows token ids only, no text, no framework, no process."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from core.engine.arriving import Arrivals
from core.engine.batch import Step
from core.engine.block_manager import BlockManager
from core.engine.drafting import Drafting
from core.engine.gains import Gains
from core.engine.guiding import Guide
from core.engine.rows import Rows, Sequence
from core.engine.scheduler import Scheduler
from core.errors import INTERNAL, EngineDeadError, RequestError
from core.interfaces.blocks import BlockPolicy, PoolUse
from core.interfaces.cache import CachePolicy
from core.interfaces.compute import Sampled, StepBatch
from core.interfaces.drafts import DraftProposer
from core.interfaces.engine import Answer, UnderWay
from core.interfaces.grammar import GrammarBackend
from core.interfaces.limits import RequestLimits
from core.interfaces.request import EngineStats, FinishReason, Request, TokenEvent, TokenLogprobs
from core.interfaces.scheduler import SchedulingPolicy

log = logging.getLogger("dovetail.engine")

IDLE_SECONDS = 0.002
STEP_FAILED = "the step failed; the server's log has the cause"  # whose text may hold anything: paths, sizes, others' data


@dataclass(frozen=True)
class EngineConfig:
    """What composition has settled."""

    max_num_seqs: int
    max_model_len: int
    max_num_batched_tokens: int
    max_waiting: int
    page_size: int
    num_pages: int
    eos_token_ids: tuple[int, ...]
    vocab: int
    seed: int = 0


class Launched(Protocol):
    """A step under way."""

    def wait(self) -> Sampled: ...


class StepRunner(Protocol):
    """``core.engine.runner.Runner``, or a test's."""

    @property
    def ahead(self) -> bool: ...  # whether a step is launched before the tokens of the one before have been read
    @property
    def replayed(self) -> int: ...
    def launch(self, batch: StepBatch) -> Launched: ...
    def hidden_states(self, batch: StepBatch) -> NDArray[np.float32]: ...
    def likelihoods(self, batch: StepBatch, token_ids: NDArray[np.int64], most: int) -> Sampled: ...
    def check(self) -> None: ...
    def close(self) -> None: ...


class Engine:
    """Not thread-safe: one thread adds, aborts and steps.

    A model step that raises ends the requests that took part in it with "error" and leaves the others alone. What passes
    through ``step`` is the end of the engine: an ``EngineDeadError`` (the device is lost), or a policy that breaks its word.
    """

    def __init__(
        self,
        config: EngineConfig,
        runner: StepRunner,
        policy: SchedulingPolicy,
        cache: CachePolicy,
        blocks: BlockPolicy,
        drafts: DraftProposer | None = None,
        grammars: GrammarBackend | None = None,
    ) -> None:
        self.config = config
        capacity = blocks.for_admission(PoolUse(config.num_pages, available=config.num_pages)) * config.page_size
        self.limits = RequestLimits(config.max_model_len, config.vocab, capacity, config.max_num_seqs + config.max_waiting)
        self._runner = runner
        self._rows = Rows(config.max_num_seqs, self.limits.context, config.page_size, config.vocab)
        self.blocks = BlockManager(config.num_pages, cache, blocks, self._rows)
        self._arrivals = Arrivals(
            policy,
            grammars,
            context=self.limits.context,
            eos_token_ids=config.eos_token_ids,
            vocab=config.vocab,
            seed=config.seed,
        )
        self._drafting = None if drafts is None else Drafting(self._rows, drafts)
        self._gains = Gains(self._rows, self.blocks, self._drafting, self._end)
        self._scheduler = Scheduler(self._rows, self.blocks, policy, config.max_num_batched_tokens, self._land, self._drafting)
        self._sequences: dict[str, Sequence] = {}  # every request that has not had its last event decided
        self._told: list[TokenEvent] = []  # given out by the next step; between steps these are ends of aborted requests
        self._answers: list[Answer] = []
        self._has_read = False
        self._flight: tuple[Step, Launched] | None = None  # launched, and its tokens not read
        self._last: Step | None = None  # launched, and not failed in that
        self._finished: dict[str, int] = {"stop": 0, "length": 0, "abort": 0, "error": 0}
        self.under_way: UnderWay | None = None
        self._steps = 0
        self._step_seconds = self._schedule_seconds = 0.0

    def add(self, request: Request) -> None:
        """Whether its grammar can be had is found out beside the steps: ``answers`` tells of one that cannot, and of what was
        found in a prompt that is only read.

        :raises RequestError: for one that can never run, or (status 429) while too many wait.
        """
        taken = request.request_id in self._sequences or any(event.request_id == request.request_id for event in self._told)
        if taken:
            raise RequestError(f"request id {request.request_id!r} is in use", param="request_id", code="duplicate_id")
        self.limits.check(request.prompt_token_ids, request.params)
        if self._num_waiting >= self.config.max_waiting + self._rows.num_free:  # who can run at once does not wait
            raise RequestError(
                f"{self.config.max_waiting} requests wait already: try again later", code="queue_full", status=429
            )
        sequence = self._arrivals.take(request)
        self._sequences[request.request_id] = sequence
        if request.request_id not in self._arrivals.preparing:
            self._scheduler.wait(sequence)

    def abort(self, request_id: str) -> bool:
        """Free all that the request holds now; the next step reports its end. False when it has ended or never was."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return False
        self._told.append(self._end(sequence, "abort"))
        return True

    @property
    def has_work(self) -> bool:
        return bool(self._sequences or self._told or self._flight)

    def step(self) -> list[TokenEvent]:
        """One round for everybody who can take part.

        Returns what each gained: by this round, or by the one before where the runner is ahead, which then need not wait for
        the host. Who has ended with a token that was read late has taken part in vain once more, and nobody is told of it.
        """
        began = perf_counter()
        self.under_way = UnderWay(monotonic())
        self._admit_prepared()
        reading = None if self._has_read else self._scheduler.reading()
        self._has_read = reading is not None  # who is only read and all the others take turns
        step = self._scheduler.schedule() if reading is None else None
        self._schedule_seconds += perf_counter() - began
        if reading is not None:
            self.under_way = UnderWay(self.under_way.began, 1, reading[1])
            self._read_on(*reading)
        elif step is None:
            if not self._land() and not self._told and not self._answers and self._scheduler.reading() is None:
                self._wait_for_grammars()
        else:
            self.under_way = UnderWay(self.under_way.began, len(step.rows), step.batch.num_tokens)
            self._launch(step)
            self._steps += 1
        events, self._told = self._told, []
        self.under_way = None
        self._step_seconds += perf_counter() - began
        return events

    def answers(self) -> list[Answer]:
        """What has come of requests besides tokens since this was last asked: ask after each step."""
        answers, self._answers = self._answers, []
        return answers

    def check(self) -> None:
        """:raises EngineDeadError: when what it runs on is gone. Asked now and then while there is nothing to do."""
        self._runner.check()

    def stats(self) -> EngineStats:
        return EngineStats(
            num_running=self._rows.num_used,
            num_waiting=self._num_waiting,
            pages_total=self.blocks.pool.total,
            pages_free=self.blocks.pool.num_free,
            pages_cached=self.blocks.num_kept,
            requests_finished=dict(self._finished),
            prompt_tokens=self._scheduler.num_prompt_tokens,
            cached_prompt_tokens=self._scheduler.num_cached_tokens,
            generation_tokens=self._gains.num_tokens,
            preemptions=self._scheduler.num_preemptions,
            draft_tokens=0 if self._drafting is None else self._drafting.num_proposed,
            accepted_draft_tokens=0 if self._drafting is None else self._drafting.num_accepted,
            steps=self._steps,
            steps_replayed=self._runner.replayed,
            step_seconds=self._step_seconds,
            schedule_seconds=self._schedule_seconds,
        )

    def close(self) -> None:
        """End whatever still runs and release the device."""
        if self._flight is not None:
            with suppress(Exception):  # whatever became of it
                self._flight[1].wait()
            self._flight = None
        for request_id in list(self._sequences):
            self.abort(request_id)
        self.blocks.close()
        self._arrivals.close()
        self._runner.close()

    @property
    def _num_waiting(self) -> int:
        return self._scheduler.num_waiting + len(self._arrivals.preparing)

    def _admit_prepared(self) -> None:
        """Who waits for a grammar that is ready by now waits for a place, or has nothing to wait for."""
        for sequence in self._arrivals.ready():
            refusal = None if sequence.guide is None else sequence.guide.refusal
            if refusal is None:
                self._scheduler.wait(sequence)
                continue
            del self._sequences[sequence.request_id]
            self._refuse(sequence.request_id, refusal)

    def _refuse(self, request_id: str, error: Exception) -> None:
        if not isinstance(error, RequestError):
            log.error("request %s cannot be had", request_id, exc_info=error)
            error = RequestError(INTERNAL, code="internal_error", status=500)
        self._answers.append(Answer(request_id, error))

    def _wait_for_grammars(self) -> None:
        """Nobody else has anything to do. New requests may come meanwhile: not for long."""
        sequences = [*self._arrivals.preparing.values(), *self._scheduler.put_off()]
        if guides := [sequence.guide for sequence in sequences if sequence.guide is not None]:
            Guide.wait_for_any(guides, IDLE_SECONDS)

    # --- one step after the other ---------------------------------------------------------------------------------------

    def _launch(self, step: Step) -> None:
        """Launch a step, then read the one before it, beside which it was prepared."""
        step.batch.continues = self._last is not None and step.continues(self._last)
        self._last = None
        try:
            launched = self._runner.launch(step.batch)
        except EngineDeadError:
            raise
        except Exception as error:
            self._land()  # what they gained before
            self._fail(step, error)
        else:
            before, self._flight, self._last = self._flight, (step, launched), step
            self._gains.expect(step)
            if before is not None:
                self._read(*before)
            if not self._runner.ahead or step.drafted is not None:
                self._land()

    def _read_on(self, sequence: Sequence, most: int) -> None:
        """Compute the next tokens of a prompt that is only read."""
        self._land()
        self._last = None  # the next step does not go on from the one before
        rows, row, read = self._rows, sequence.row, sequence.read
        assert read is not None
        try:
            rows.computed[row] = read.advance(self._runner, rows.pages[row], rows.page_size, int(rows.computed[row]), most)
        except EngineDeadError:
            raise
        except Exception as error:
            self._forget(sequence)
            self._refuse(sequence.request_id, error)
        else:
            if rows.computed[row] == sequence.num_prompt:
                self._forget(sequence)
                self._answers.append(read.answer())

    def _land(self) -> bool:
        """Read the step that is under way, so that everything is known. False when there is none."""
        flight, self._flight = self._flight, None
        if flight is None:
            return False
        self._read(*flight)
        return True

    def _read(self, step: Step, launched: Launched) -> None:
        try:
            sampled = launched.wait()
        except EngineDeadError:
            raise
        except Exception as error:
            self._fail(step, error)
        else:
            self._told += self._gains.take(step, sampled)

    def _fail(self, step: Step, error: Exception) -> None:
        here = self._rows.served[step.rows] == step.served
        sequences = self._rows.at(step.rows[here])
        names = ", ".join(sequence.request_id for sequence in sequences)
        log.error("a step of %d requests failed: %s", len(sequences), names, exc_info=error)
        self._told += [self._end(sequence, "error", error=STEP_FAILED) for sequence in sequences]

    def _end(
        self,
        sequence: Sequence,
        reason: FinishReason,
        token_ids: list[int] | None = None,
        stop_token: int | None = None,
        logprobs: list[TokenLogprobs] | None = None,
        error: str = "",
    ) -> TokenEvent:
        """Give back all that a sequence holds; its last event."""
        self._forget(sequence)
        self._finished[reason] += 1
        cached = max(0, sequence.num_cached)
        return TokenEvent(sequence.request_id, token_ids or [], reason, stop_token, logprobs, cached, error)

    def _forget(self, sequence: Sequence) -> None:
        if self._arrivals.preparing.pop(sequence.request_id, None) is None:
            self._scheduler.remove(sequence)
        if sequence.guide is not None:
            sequence.guide.forget()
        del self._sequences[sequence.request_id]
