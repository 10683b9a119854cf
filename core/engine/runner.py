"""Runs one step: arrays in, sampled tokens out. Everything between stays on the backend's device."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from core.errors import EngineDeadError
from core.interfaces.compute import Array, KVCache, Sampled, StepBatch
from core.interfaces.graph import GraphBackend, StaticStep, StepShape
from core.interfaces.sampler import Sampler
from core.models.decoder import Decoder

log = logging.getLogger("dovetail.engine")


class Runner:
    def __init__(self, decoder: Decoder, kv: KVCache, sampler: Sampler, graph: GraphBackend) -> None:
        self._decoder = decoder
        self._backend = decoder.backend
        self._kv = kv
        self._sampler = sampler
        self._graph = graph

        def forward(step: Any) -> Array:
            return decoder.forward(step, kv)

        def static_step(shape: StepShape) -> StaticStep | None:
            return decoder.backend.static_step(shape, decoder.spec, kv)

        self._forward = graph.prepare(forward, static_step)
        log.info("steps are launched so: %s", graph.describe())

    @property
    def replayed(self) -> int:
        return self._graph.replayed

    def run(self, batch: StepBatch) -> Sampled:
        """:raises EngineDeadError: when the device is lost; any other exception concerns this step alone."""
        try:
            return self._run(batch)
        except Exception as error:
            try:
                self._backend.memory()
            except Exception as lost:
                raise EngineDeadError(f"the device {self._backend.device} no longer answers: {lost}") from error
            raise

    def _run(self, batch: StepBatch) -> Sampled:
        backend, rows = self._backend, batch.sampling
        logits = self.launch(batch)
        if not len(rows):  # every prompt of the step goes on in the next one
            return Sampled(np.zeros(0, np.int64))
        most = int(rows.logprobs.max())
        raw = logits
        if most >= 0 and not (rows.all_greedy and rows.adjustment is None):
            raw = backend.clone(logits)  # what follows may write into the logits
        if rows.adjustment is not None:
            logits = backend.adjust(logits, rows.adjustment)
        tokens = backend.argmax(logits) if rows.all_greedy else self._sampler.sample(logits, rows)
        if most < 0:
            return Sampled(backend.to_host(tokens))
        chosen, ranks, top_ids, top_logprobs = (backend.to_host(part) for part in backend.logprobs(raw, tokens, most))
        return Sampled(backend.to_host(tokens), chosen, ranks, top_ids, top_logprobs)

    def launch(self, batch: StepBatch) -> Array:
        """As far as the logits of the rows that are sampled."""
        return self._forward(self._backend.upload(batch, self._decoder.spec, self._kv))

    def check(self) -> None:
        """:raises EngineDeadError: when something it runs on is gone, found out without a step."""

    def close(self) -> None:
        self._graph.close()
        self._backend.close()
