"""A language model of a few lines of numpy behind the runner's interface, and the plainest generator to compare with.

Its "KV cache" holds for each slot the token and its position; the logits of a row come from a hash of all tokens read back
through the page table. Any mistake in slots, pages, positions or order therefore changes what is generated.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from core.engine.engine import Engine, EngineConfig
from core.interfaces.compute import Sampled, StepBatch
from core.interfaces.drafts import DraftProposer
from core.interfaces.randomness import uniform
from core.interfaces.request import Request, SamplingParams, TokenEvent
from core.interfaces.scheduler import SchedulingPolicy, StepBudget
from kv_blocks.policies import GlobalBlocks
from plain.private import PrivatePages
from plain.whole import WholePrompts
from tests.engine.fake_host import FakeKV

VOCAB = 41
EOS = 7
_POWERS = np.cumprod(np.full(1 << 12, 0x9E3779B97F4A7C15, np.uint64), dtype=np.uint64)
_MIX = np.arange(1, VOCAB + 1, dtype=np.uint64) * np.uint64(0xD1342543DE82EF95) | np.uint64(1)


def logits_of(tokens) -> np.ndarray:
    """float32 [V] in [-4, 4) for the token after ``tokens``."""
    tokens = np.asarray(tokens, np.uint64)
    digest = ((tokens + np.uint64(1)) * _POWERS[: len(tokens)]).sum(dtype=np.uint64)
    mixed = (digest ^ (digest >> np.uint64(29))) * _MIX
    mixed ^= mixed >> np.uint64(31)
    return ((mixed * np.uint64(0xBF58476D1CE4E5B9) >> np.uint64(40)).astype(np.float64) / 2**21 - 4).astype(np.float32)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    return wide - np.log(np.exp(wide - wide.max()).sum()) - wide.max()


def pick(logits: np.ndarray, temperature: float, seed: int, position: int) -> int:
    """Greedy, or Gumbel noise keyed by (seed, position, token)."""
    if temperature == 0:
        return int(logits.argmax())
    keys = position * len(logits) + np.arange(len(logits), dtype=np.int64)
    noise = uniform(np.full(len(logits), seed, np.uint64), keys)
    with np.errstate(divide="ignore"):
        return int((logits / temperature - np.log(-np.log(noise))).argmax())


def generate(prompt: list[int], params: SamplingParams, context: int, eos=(EOS,), seed: int | None = None):
    """(tokens, finish reason, logprob of each): the rules spelled out, everything recomputed for every token."""
    tokens, output, reported = list(prompt), [], []
    seed = (params.seed if seed is None else seed) or 0
    most = context - len(prompt) if params.max_tokens is None else params.max_tokens
    stops = set(params.stop_token_ids) | (set() if params.ignore_eos else set(eos))
    while True:
        raw = logits_of(tokens)
        logits = raw.astype(np.float32).copy()
        for token, bias in params.logit_bias.items():
            logits[token] += np.float32(bias)
        for token in set(tokens):
            by = np.float32(params.repetition_penalty)
            logits[token] = logits[token] / by if logits[token] > 0 else logits[token] * by
            count = output.count(token)
            logits[token] -= np.float32(params.frequency_penalty) * np.float32(count)
            logits[token] -= np.float32(params.presence_penalty) * np.float32(count > 0)
        if len(output) < params.min_tokens:
            logits[sorted(set(params.stop_token_ids) | set(eos))] = -np.inf
        token = pick(logits, 0.0 if params.greedy else params.temperature, seed % 2**64, len(tokens))
        reported.append(log_softmax(raw)[token])
        tokens.append(token)
        output.append(token)
        if token in stops and len(output) > params.min_tokens:
            return output, "stop", reported
        if len(output) == most:
            return output, "length", reported


class Late:
    def __init__(self, runner: FakeRunner, sampled: Sampled, error: Exception | None) -> None:
        self.runner, self.sampled, self.error = runner, sampled, error

    def wait(self) -> Sampled:
        self.runner.unread -= 1
        if self.error is not None:
            raise self.error
        return self.sampled


class FakeRunner:
    """Checks every batch it is given, then generates. ``fail_on`` makes the steps in which that token is computed raise,
    ``fail_late_on`` only when their tokens are asked for.

    ``ahead``: it keeps its tokens to itself until it is asked for them, and steps may be launched meanwhile.
    """

    def __init__(self, num_pages: int, page_size: int, budget: int, ahead: bool = False) -> None:
        self.ahead = ahead
        self.page_size = page_size
        self.budget = budget
        self.kv_tokens = np.full(num_pages * page_size, -1, np.int64)
        self.kv_positions = np.full(num_pages * page_size, -1, np.int64)
        self.batches: list[tuple[int, int, int]] = []  # (tokens, sequences, decodes) of each step
        self.last: StepBatch | None = None
        self.fail_on: int | None = None
        self.fail_late_on: int | None = None
        self.given: np.ndarray | None = None  # tokens of the step before
        self.unread = 0
        self.lost = False
        self.closed = False

    @property
    def replayed(self) -> int:
        return len(self.batches) // 2

    def launch(self, batch: StepBatch) -> Late:
        assert self.unread <= self.ahead, "a step was launched before one long before it was read"
        sampled = self._run(replace(batch, token_ids=self._followed(batch.token_ids)))
        late = self.fail_late_on is not None and (batch.token_ids == self.fail_late_on).any()
        self.given = sampled.token_ids
        self.unread += 1
        return Late(self, sampled, ArithmeticError("bad token, found late") if late else None)

    def _followed(self, token_ids: np.ndarray) -> np.ndarray:
        unknown = token_ids < 0
        assert not unknown.any() or self.unread, "a token stands for another that is known"
        followed = token_ids.copy()
        if unknown.any():
            followed[unknown] = self.given[-1 - token_ids[unknown]]
        return followed

    def _run(self, batch: StepBatch) -> Sampled:
        self._check(batch)
        self.batches.append((batch.num_tokens, batch.num_sequences, batch.num_decodes))
        self.last = batch
        if self.lost:
            from core.errors import EngineDeadError

            raise EngineDeadError("the device is gone")
        if self.fail_on is not None and (batch.token_ids == self.fail_on).any():
            raise ArithmeticError("bad token")
        self.kv_tokens[batch.slots] = batch.token_ids
        self.kv_positions[batch.slots] = batch.positions
        logits = np.stack([logits_of(self._context(batch, int(row))) for row in batch.logit_rows] or [np.zeros(VOCAB)])
        rows = batch.sampling
        logits = logits[: len(rows)].astype(np.float32)
        adjusted = self._adjust(logits.copy(), rows.adjustment)
        tokens = np.array(
            [
                pick(adjusted[r], float(rows.temperature[r]), int(rows.seeds[r]), int(rows.positions[r]))
                for r in range(len(rows))
            ],
            np.int64,
        )
        most = int(rows.logprobs.max(initial=-1))
        if most < 0:
            return Sampled(tokens)
        logprobs = np.stack([log_softmax(row) for row in logits])
        order = np.argsort(-logprobs, axis=1, kind="stable")
        chosen = logprobs[np.arange(len(tokens)), tokens]
        ranks = np.array([int(np.flatnonzero(order[r] == tokens[r])[0]) for r in range(len(tokens))])
        top = order[:, :most]
        return Sampled(tokens, chosen.astype(np.float32), ranks, top, np.take_along_axis(logprobs, top, 1).astype(np.float32))

    def check(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def _context(self, batch: StepBatch, token_row: int) -> np.ndarray:
        """The tokens up to and with ``token_row``, read from the pages."""
        sequence = int(np.searchsorted(batch.query_starts, token_row, side="right")) - 1
        index = np.arange(batch.positions[token_row] + 1)
        slots = batch.page_table[sequence, index // self.page_size].astype(np.int64) * self.page_size + index % self.page_size
        assert (self.kv_positions[slots] == index).all(), "a page of the context holds something else"
        return self.kv_tokens[slots]

    def _check(self, batch: StepBatch) -> None:
        starts = batch.query_starts
        assert starts[0] == 0
        assert batch.num_tokens <= self.budget
        assert starts[-1] == batch.num_tokens == len(batch.positions) == len(batch.slots) > 0
        counts = np.diff(starts)
        assert len(counts) == batch.num_sequences == len(batch.page_table)
        assert (counts >= 1).all()
        assert (counts[: batch.num_decodes] == 1).all()
        assert len(set(batch.slots.tolist())) == batch.num_tokens, "two tokens share a slot"
        for s in range(batch.num_sequences):
            own = slice(starts[s], starts[s + 1])
            positions = batch.positions[own]
            assert positions.tolist() == list(range(batch.context_lens[s] - counts[s], batch.context_lens[s]))
            table = batch.page_table[s, positions // self.page_size]
            assert (batch.slots[own] == table.astype(np.int64) * self.page_size + positions % self.page_size).all()
        ends = (starts[1:] - 1).tolist()
        wanted = batch.logit_rows.tolist()
        assert sorted(set(wanted)) == wanted
        assert all(row in ends or row + 1 in wanted for row in wanted), "of a sequence the last tokens, in a run"
        assert ends[: batch.num_decodes] == batch.logit_rows[: batch.num_decodes].tolist()
        assert len(batch.sampling) == len(batch.logit_rows)
        positions = np.array([batch.positions[row] + 1 for row in batch.logit_rows], np.int64)
        assert (batch.sampling.positions == positions).all()
        assert batch.sampling.all_greedy == (not batch.sampling.temperature.any())
        for name, dtype in (("token_ids", "i4"), ("positions", "i4"), ("slots", "i8"), ("query_starts", "i4"),
                            ("context_lens", "i4"), ("page_table", "i4"), ("logit_rows", "i8")):  # fmt: skip
            assert getattr(batch, name).dtype == np.dtype(dtype), name
        for name, dtype in (("temperature", "f4"), ("top_k", "i4"), ("top_p", "f4"), ("min_p", "f4"), ("seeds", "u8"),
                            ("positions", "i8"), ("logprobs", "i4")):  # fmt: skip
            assert getattr(batch.sampling, name).dtype == np.dtype(dtype), name

    @staticmethod
    def _adjust(logits: np.ndarray, adjustment) -> np.ndarray:
        if adjustment is None:
            return logits
        a = adjustment
        assert len(a.bias_rows) == len(a.bias_tokens) == len(a.bias_values)
        assert len(a.banned_rows) == len(a.banned_tokens)
        assert len(a.seen_rows) == len(a.seen_tokens) == len(a.seen_counts)
        assert len(set(zip(a.seen_rows.tolist(), a.seen_tokens.tolist(), strict=True))) == len(a.seen_rows)
        np.add.at(logits, (a.bias_rows, a.bias_tokens), a.bias_values)
        seen = logits[a.seen_rows, a.seen_tokens]
        by = a.repetition[a.seen_rows]
        seen = np.where(seen > 0, seen / by, seen * by)
        seen -= a.frequency[a.seen_rows] * a.seen_counts
        seen -= a.presence[a.seen_rows] * (a.seen_counts > 0)
        logits[a.seen_rows, a.seen_tokens] = seen
        logits[a.banned_rows, a.banned_tokens] = -np.inf
        if a.masks is not None:
            logits[a.masked_rows] = np.where(a.allowed(VOCAB), logits[a.masked_rows], -np.inf)
        return logits


class Prophet(DraftProposer):
    """Knows what greedy requests without penalties say next, and is wrong at every ``slip``-th position."""

    def __init__(self, most: int = 4, most_rows: int = 8, slip: int = 3) -> None:
        self.most, self.most_rows, self.slip = most, most_rows, slip
        self.asked: list[str] = []
        self.seen: list[tuple[int, int]] = []
        self.forgotten: list[str] = []

    def propose(self, request_id, tokens, most):
        self.asked.append(request_id)
        known = tokens.tolist()
        for _ in range(most):
            right = int(logits_of(known).argmax())
            known.append((right + 1) % VOCAB if len(known) % self.slip == 0 else right)
        return np.array(known[len(tokens) :], np.int32)

    def observe(self, request_id, proposed, accepted):
        self.seen.append((proposed, accepted))

    def forget(self, request_id):
        self.forgotten.append(request_id)


class Chunks(SchedulingPolicy):
    """As much of each prompt as the step has left."""

    def order(self, request: Request) -> tuple[float, ...]:
        return (request.priority,)

    def grant(self, remaining: int, budget: StepBudget) -> int:
        return min(remaining, budget.left)


def make_engine(
    *,
    seqs=8,
    context=128,
    budget=256,
    pages=64,
    page_size=4,
    waiting=1000,
    eos=(EOS,),
    seed=0,
    policy=None,
    cache=None,
    blocks=None,
    drafts=None,
    grammars=None,
    copying=(),
    ahead=False,
) -> Engine:
    config = EngineConfig(
        max_num_seqs=seqs,
        max_model_len=context,
        max_num_batched_tokens=budget,
        max_waiting=waiting,
        page_size=page_size,
        num_pages=pages,
        eos_token_ids=eos,
        vocab=VOCAB,
        seed=seed,
    )
    policy = policy or (WholePrompts() if budget >= context else Chunks())
    cache, runner = cache or PrivatePages(), FakeRunner(pages, page_size, budget, ahead)
    cache.attach_memory(FakeKV(runner, pages, page_size, *copying))
    return Engine(config, runner, policy, cache, blocks or GlobalBlocks(), drafts, grammars)


def request(request_id: str, prompt: list[int], *, priority: int = 0, salt: str = "", **params) -> Request:
    params.setdefault("temperature", 0.0)
    return Request(
        request_id=request_id,
        prompt_token_ids=prompt,
        params=SamplingParams(**params),
        priority=priority,
        cache_salt=salt,
    )


def drain(engine: Engine, most_steps: int = 5000) -> dict[str, list[TokenEvent]]:
    """All events by request until nothing is left to do; the pages are checked after every step."""
    events: dict[str, list[TokenEvent]] = {}
    for _ in range(most_steps):
        if not engine.has_work:
            return events
        collect(events, engine.step())
        engine.blocks.check()
    raise AssertionError(f"still busy after {most_steps} steps: {engine.stats()}")


def collect(events: dict[str, list[TokenEvent]], new: list[TokenEvent]) -> None:
    for event in new:
        past = events.setdefault(event.request_id, [])
        assert not past or past[-1].finish_reason is None, "an event after the last one"
        past.append(event)


def tokens_of(events: list[TokenEvent]) -> list[int]:
    return [token for event in events for token in event.token_ids]


def assert_idle(engine: Engine) -> None:
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert stats.pages_free + stats.pages_cached == stats.pages_total
    assert not engine._rows.stop_uses.any()
