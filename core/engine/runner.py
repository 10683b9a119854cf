"""Runs steps: arrays in, sampled tokens out. Everything between stays on the backend's device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import EngineDeadError
from core.interfaces.compute import Array, KVCache, Linear, Sampled, SamplingRows, StepBatch
from core.interfaces.graph import GraphBackend, Outcome, StaticStep, StepShape
from core.interfaces.sampler import Sampler
from core.models.decoder import Decoder

log = logging.getLogger("dovetail.engine")


class Launched:
    """A step under way: its tokens can be waited for."""

    def __init__(self, sampled: Callable[[], Sampled], alive: Callable[[], AbstractContextManager[None]]) -> None:
        self._sampled = sampled
        self._alive = alive

    def wait(self) -> Sampled:
        """:raises EngineDeadError: as ``Runner.launch`` does."""
        with self._alive():
            return self._sampled()


class Runner:
    def __init__(self, decoder: Decoder, kv: KVCache, sampler: Sampler, graph: GraphBackend) -> None:
        self._decoder = decoder
        self._backend = decoder.backend
        self._kv = kv
        self._sampler = sampler
        self._graph = graph

        self._draw = sampler.on_device(self._backend.device)
        self._tokens: Array = None  # that the step launched last gives
        self._no_head: Linear | None = None  # placed when it is first wanted
        self._left_next = False  # whether it leaves the step that follows on the device

        def static_step(shape: StepShape) -> StaticStep | None:
            return self._backend.static_step(shape, decoder.spec, kv)

        self._forward = graph.prepare(self._outcome, static_step, self._draw is not None)
        log.info("steps are launched so: %s", graph.describe())

    @property
    def replayed(self) -> int:
        return self._graph.replayed

    @property
    def ahead(self) -> bool:
        return self._backend.ahead

    def launch(self, batch: StepBatch) -> Launched:
        """:raises EngineDeadError: when the device is lost; any other exception concerns this step alone."""
        with self._alive():
            return Launched(self._launch(batch), self._alive)

    def forward(self, batch: StepBatch) -> Outcome:
        """As far as the logits of the rows that are sampled, or further."""
        if batch.continues and self._left_next and (outcome := self._graph.repeat()) is not None:
            return outcome
        step = self._backend.upload(batch, self._decoder.spec, self._kv)
        if batch.token_ids.min() < 0:
            self._backend.follow(step, self._tokens)
        return self._forward(step)

    def hidden_states(self, batch: StepBatch) -> NDArray[np.float32]:
        """[R, H] behind the final norm, of the rows whose logits are wanted; waits for them.

        :raises RequestError: where the model is shared by several processes.
        """
        with self._alive():
            if self._no_head is None:
                self._no_head = self._decoder.no_head()
            step = self._backend.upload(batch, self._decoder.spec, self._kv)
            return self._backend.to_host(self._decoder.forward(step, self._kv, self._no_head))

    def likelihoods(self, batch: StepBatch, token_ids: NDArray[np.int64], most: int) -> Sampled:
        """How likely these tokens [R] are in the rows whose logits are wanted, with the ``most`` likeliest; waits for it."""
        with self._alive():
            likely = self._backend.logprobs(self.forward(batch).logits, token_ids, most)
            return Sampled(token_ids, *self._backend.fetch(likely)())

    def _outcome(self, step: Any) -> Outcome:
        """The part of a step that needs no host, and that may be recorded."""
        backend = self._backend
        logits = self._decoder.forward(step, self._kv)
        rows = backend.sampling(step)
        if rows is None or (step.shape.drawn and self._draw is None):
            return Outcome(logits)
        tokens = self._draw(logits, rows) if step.shape.drawn and self._draw else backend.argmax(logits)
        return Outcome(logits, tokens, isinstance(step, StaticStep) and step.advance(tokens))

    def _launch(self, batch: StepBatch) -> Callable[[], Sampled]:
        backend, rows = self._backend, batch.sampling
        outcome = self.forward(batch)
        if not len(rows):  # every prompt of the step goes on in the next one
            return lambda: Sampled(np.zeros(0, np.int64))
        raw, most = outcome.logits, int(rows.logprobs.max())
        chosen = rows.adjustment is None and (rows.all_greedy or self._draw is not None)
        if chosen and outcome.tokens is not None:
            tokens = outcome.tokens
        else:
            if most >= 0 and not (rows.all_greedy and rows.adjustment is None):
                raw = backend.clone(raw)  # what follows may write into the logits
            tokens = self._choose(outcome.logits, rows)
        self._tokens, self._left_next = tokens, outcome.advanced and tokens is outcome.tokens
        fetched = backend.fetch([tokens] if most < 0 else [tokens, *backend.logprobs(raw, tokens, most)])
        vocab = int(raw.shape[-1])  # of all ranks together, where each has a part of the head
        return lambda: self._checked(Sampled(*fetched()), vocab)

    def _checked(self, sampled: Sampled, vocab: int) -> Sampled:
        """A wrong token would be looked up by everybody behind this."""
        last = sampled.token_ids.astype(np.uint64).max()  # which of a negative one is beyond everything
        if last >= vocab:
            wrong = int(last.view(np.int64))
            raise ValueError(f"the sampler {self._sampler} gave the token {wrong}, and the model has {vocab}")
        return sampled

    def _choose(self, logits: Array, rows: SamplingRows) -> Array:
        """Behind the step, with what the host knows of its rows."""
        if rows.adjustment is not None:
            logits = self._backend.adjust(logits, rows.adjustment)
        if rows.all_greedy:
            return self._backend.argmax(logits)
        tokens = self._sampler.sample(logits, rows)
        if tuple(getattr(tokens, "shape", ())) != (len(rows),):
            gave = f"{type(tokens).__name__}{list(getattr(tokens, 'shape', ()))}"
            raise TypeError(f"the sampler {self._sampler} gave {gave} instead of one token for each of {len(rows)} rows")
        return tokens

    @contextmanager
    def _alive(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            try:
                self._backend.memory()
            except Exception as lost:
                raise EngineDeadError(f"the device {self._backend.device} no longer answers: {lost}") from error
            raise

    def check(self) -> None:
        """:raises EngineDeadError: when something it runs on is gone, found out without a step."""

    def close(self) -> None:
        self._graph.close()
        self._backend.close()
