"""The engine: requests in, tokens out, one step at a time. It knows token ids only, no text, no framework, no process."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import numpy as np

from core.engine.batch import Step
from core.engine.block_manager import BlockManager
from core.engine.drafting import Drafting
from core.engine.guiding import Guide, Guiding
from core.engine.penalties import Seen
from core.engine.rows import Ints, Rows, Sequence
from core.engine.scheduler import Scheduler
from core.engine.stop import banned_tokens, stop_tokens, verdict
from core.errors import EngineDeadError, RequestError
from core.interfaces.blocks import BlockPolicy, PoolUse
from core.interfaces.cache import CachePolicy
from core.interfaces.compute import Sampled, StepBatch
from core.interfaces.drafts import DraftProposer
from core.interfaces.grammar import GrammarBackend
from core.interfaces.limits import RequestLimits
from core.interfaces.randomness import philox
from core.interfaces.request import EngineStats, FinishReason, Request, SamplingParams, TokenEvent, TokenLogprobs
from core.interfaces.scheduler import SchedulingPolicy

log = logging.getLogger("dovetail.engine")


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


class StepRunner(Protocol):
    """``core.engine.runner.Runner``, or a test's."""

    @property
    def replayed(self) -> int: ...
    def run(self, batch: StepBatch) -> Sampled: ...
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
        self._policy = policy
        self._rows = Rows(config.max_num_seqs, self.limits.context, config.page_size, config.vocab)
        self.blocks = BlockManager(config.num_pages, cache, blocks, self._rows)
        self._guiding = None if grammars is None else Guiding(grammars)
        self._drafting = None if drafts is None else Drafting(self._rows, drafts)
        self._scheduler = Scheduler(self._rows, self.blocks, policy, config.max_num_batched_tokens, self._drafting)
        self._sequences: dict[str, Sequence] = {}  # every request that has not had its last event decided
        self._aborted: list[TokenEvent] = []  # given out by the next step
        self._eos = tuple(token for token in config.eos_token_ids if 0 <= token < config.vocab)
        self._num_added = 0
        self._finished: dict[str, int] = {"stop": 0, "length": 0, "abort": 0, "error": 0}
        self._generation_tokens = self._steps = 0
        self._step_seconds = self._schedule_seconds = 0.0

    def add(self, request: Request) -> None:
        """:raises RequestError: for one that can never run, or (status 429) while too many wait."""
        taken = request.request_id in self._sequences or any(event.request_id == request.request_id for event in self._aborted)
        if taken:
            raise RequestError(f"request id {request.request_id!r} is in use", param="request_id", code="duplicate_id")
        self.limits.check(request.prompt_token_ids, request.params)
        if len(self._scheduler.waiting) >= self.config.max_waiting + self._rows.num_free:  # who can run at once does not wait
            raise RequestError(
                f"{self.config.max_waiting} requests wait already: try again later", code="queue_full", status=429
            )
        sequence = self._sequence(request)
        self._num_added += 1
        self._sequences[request.request_id] = sequence
        self._scheduler.wait(sequence)

    def abort(self, request_id: str) -> bool:
        """Free all that the request holds now; the next step reports its end. False when it has ended or never was."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return False
        self._scheduler.remove(sequence)
        self._aborted.append(self._end(sequence, "abort"))
        return True

    @property
    def has_work(self) -> bool:
        return bool(self._sequences or self._aborted)

    def step(self) -> list[TokenEvent]:
        """One round for everybody who can take part; what each gained."""
        began = perf_counter()
        events, self._aborted = self._aborted, []
        step = self._scheduler.schedule()
        scheduled = perf_counter()
        if step is not None:
            try:
                sampled = self._runner.run(step.batch)
            except EngineDeadError:
                raise
            except Exception as error:
                log.exception("a step of %d requests failed", len(step.rows))
                events += self._fail(step, f"{type(error).__name__}: {error}")
            else:
                events += self._commit(step, sampled)
            self._steps += 1
        self._schedule_seconds += scheduled - began
        self._step_seconds += perf_counter() - began
        return events

    def check(self) -> None:
        """:raises EngineDeadError: when what it runs on is gone. Asked now and then while there is nothing to do."""
        self._runner.check()

    def stats(self) -> EngineStats:
        return EngineStats(
            num_running=self._rows.num_used,
            num_waiting=len(self._scheduler.waiting),
            pages_total=self.blocks.pool.total,
            pages_free=self.blocks.pool.num_free,
            pages_cached=self.blocks.num_kept,
            requests_finished=dict(self._finished),
            prompt_tokens=self._scheduler.num_prompt_tokens,
            cached_prompt_tokens=self._scheduler.num_cached_tokens,
            generation_tokens=self._generation_tokens,
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
        for request_id in list(self._sequences):
            self.abort(request_id)
        self.blocks.close()
        if self._guiding is not None:
            self._guiding.close()
        self._runner.close()

    def _sequence(self, request: Request) -> Sequence:
        params = request.params
        prompt = np.array(request.prompt_token_ids, np.int32)
        stops = stop_tokens(params, self._eos)
        seen = None
        if params.penalized:
            seen = Seen(prompt if params.repetition_penalty != 1.0 else prompt[:0])
        return Sequence(
            request_id=request.request_id,
            request=request,
            key=(self._policy.order(request), self._num_added),
            tokens=prompt,
            num_prompt=len(prompt),
            limit=self.limits.context if params.max_tokens is None else len(prompt) + params.max_tokens,
            min_length=len(prompt) + params.min_tokens,
            seed=self._drawn_seed() if params.seed is None else params.seed % 2**64,
            stops=stops,
            stop_ids=np.array(sorted(stops), np.int32),
            banned=np.array(sorted(banned_tokens(params, self._eos)), np.int32),
            bias_tokens=np.array(list(params.logit_bias.keys()), np.int32),
            bias_values=np.array(list(params.logit_bias.values()), np.float32),
            seen=seen,
            guide=self._guide(params),
        )

    def _guide(self, params: SamplingParams) -> Guide | None:
        if self._guiding is not None:
            return self._guiding.guide(params)
        if params.grammar is not None:
            raise RequestError(
                "outputs of a given form are not to be had: this server was composed without a grammar backend",
                param="grammar",
                code="unsupported_parameter",
            )
        return None

    def _drawn_seed(self) -> int:
        """The same for the n-th request of every engine with this seed, and unlike that of any other request."""
        words = philox(np.array([self.config.seed % 2**64], np.uint64), np.array([self._num_added], np.int64))[0]
        return int(words[0]) << 32 | int(words[1])

    def _commit(self, step: Step, sampled: Sampled) -> list[TokenEvent]:
        if step.drafted is not None:
            return self._commit_drafted(step, step.drafted, sampled)
        rows, taken = self._rows, step.sampled
        after = step.before + step.counts
        rows.computed[step.rows] = after
        lengths = rows.length[taken]
        rows.tokens[taken, lengths] = sampled.token_ids
        lengths += 1
        rows.length[taken] = lengths
        self.blocks.note_filled(step.rows, step.before, after)
        self._generation_tokens += len(taken)
        tokens: list[int] = sampled.token_ids.tolist()
        sequences = rows.at(taken)
        events = [
            TokenEvent(sequence.request_id, [token], None, None, None, sequence.num_cached)
            for sequence, token in zip(sequences, tokens, strict=True)
        ]
        # Nearly all rows are done here. What follows is for those that may end, and those of which more is to be noted.
        ending = (rows.stop_uses[sampled.token_ids] > 0) | (lengths >= rows.limit[taken])
        noting = rows.penalized[taken] | rows.guided[taken] | (rows.logprobs[taken] >= 0)
        for index in np.flatnonzero(ending | noting).tolist():
            events[index] = self._gained(sequences[index], int(lengths[index]) - 1, range(index, index + 1), sampled)
        return events

    def _commit_drafted(self, step: Step, drafted: Ints, sampled: Sampled) -> list[TokenEvent]:
        """The same for a step of few rows, of which some may gain several tokens."""
        rows = self._rows
        assert self._drafting is not None
        gains = self._drafting.right(step, sampled.token_ids)
        after = step.before + step.counts - drafted + np.array([max(0, len(gain) - 1) for gain in gains])
        rows.computed[step.rows] = after
        sequences = rows.at(step.rows)
        lengths = rows.length[step.rows].tolist()
        for row, length, gain in zip(step.rows.tolist(), lengths, gains, strict=True):
            rows.tokens[row, length : length + len(gain)] = sampled.token_ids[gain]
            rows.length[row] = length + len(gain)
        self.blocks.note_filled(step.rows, step.before, after)
        events = [
            self._gained(sequence, length, gain, sampled)
            for sequence, length, gain in zip(sequences, lengths, gains, strict=True)
            if len(gain)
        ]
        self._generation_tokens += sum(len(event.token_ids) for event in events)
        return events

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
                logprobs += _logprobs(sampled, index, wanted)
            reason, stop_token, error = self._verdict(sequence, tokens[-1], length + len(tokens))
            if reason is not None:
                self._scheduler.remove(sequence)
                return self._end(sequence, reason, tokens, stop_token, logprobs, error)
        return TokenEvent(sequence.request_id, tokens, None, None, logprobs, sequence.num_cached)

    @staticmethod
    def _verdict(sequence: Sequence, token: int, length: int) -> tuple[FinishReason | None, int | None, str]:
        """Why it ends with this token, if it does; the token that stopped it; what went wrong."""
        reason, stop_token = verdict(sequence, token, length)
        if sequence.guide is None or reason == "stop":
            return reason, stop_token, ""
        try:
            complete = sequence.guide.accept(token)
        except ValueError as error:
            return "error", None, str(error)
        return ("stop", None, "") if complete else (reason, stop_token, "")

    def _fail(self, step: Step, error: str) -> list[TokenEvent]:
        failed = self._rows.at(step.rows)
        for sequence in failed:
            self._scheduler.remove(sequence)
        return [self._end(sequence, "error", error=error) for sequence in failed]

    def _end(
        self,
        sequence: Sequence,
        reason: FinishReason,
        token_ids: list[int] | None = None,
        stop_token: int | None = None,
        logprobs: list[TokenLogprobs] | None = None,
        error: str = "",
    ) -> TokenEvent:
        """The last event of a sequence that has been removed from the scheduler."""
        del self._sequences[sequence.request_id]
        self._finished[reason] += 1
        cached = max(0, sequence.num_cached)
        return TokenEvent(sequence.request_id, token_ids or [], reason, stop_token, logprobs, cached, error)


def _logprobs(sampled: Sampled, index: int, wanted: int) -> list[TokenLogprobs]:
    """One row's entry; ``wanted`` of the likeliest tokens, though another row may have asked for more."""
    if sampled.logprobs is None or sampled.ranks is None or sampled.top_ids is None or sampled.top_logprobs is None:
        raise RuntimeError("a row asked for log-probabilities and the runner brought none")
    return [
        TokenLogprobs(
            float(sampled.logprobs[index]),
            int(sampled.ranks[index]),
            sampled.top_ids[index, :wanted].tolist(),
            sampled.top_logprobs[index, :wanted].tolist(),
        )
    ]
