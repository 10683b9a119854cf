"""Runs steps: arrays in, sampled tokens out. Everything between stays on the backend's device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

from core.errors import EngineDeadError
from core.interfaces.compute import Array, KVCache, Sampled, StepBatch
from core.interfaces.graph import GraphBackend, StaticStep, StepShape
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

        self._tokens: Array = None  # of the step launched last

        def forward(step: Any) -> Array:
            return decoder.forward(step, kv)

        def static_step(shape: StepShape) -> StaticStep | None:
            return decoder.backend.static_step(shape, decoder.spec, kv)

        self._forward = graph.prepare(forward, static_step)
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

    def forward(self, batch: StepBatch) -> Array:
        """As far as the logits of the rows that are sampled."""
        step = self._backend.upload(batch, self._decoder.spec, self._kv)
        if (batch.token_ids < 0).any():
            self._backend.follow(step, self._tokens)
        return self._forward(step)

    def _launch(self, batch: StepBatch) -> Callable[[], Sampled]:
        backend, rows = self._backend, batch.sampling
        logits = self.forward(batch)
        if not len(rows):  # every prompt of the step goes on in the next one
            return lambda: Sampled(np.zeros(0, np.int64))
        most = int(rows.logprobs.max())
        raw = logits
        if most >= 0 and not (rows.all_greedy and rows.adjustment is None):
            raw = backend.clone(logits)  # what follows may write into the logits
        if rows.adjustment is not None:
            logits = backend.adjust(logits, rows.adjustment)
        tokens = backend.argmax(logits) if rows.all_greedy else self._sampler.sample(logits, rows)
        self._tokens = tokens
        fetched = backend.fetch([tokens] if most < 0 else [tokens, *backend.logprobs(raw, tokens, most)])
        return lambda: Sampled(*fetched())

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
