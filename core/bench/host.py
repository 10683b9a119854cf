"""What a decode step costs the host: a whole engine with its policies, around a runner that answers at once."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from time import perf_counter
from typing import Any, cast

import numpy as np

from core.engine.engine import Engine, StepRunner
from core.interfaces.compute import Sampled, StepBatch
from core.interfaces.request import Request, SamplingParams


class _Same:
    """Tokens that are there at once, and always the same."""

    def __init__(self, number: int) -> None:
        self._sampled = Sampled(np.full(number, 5, np.int64))

    def wait(self) -> Sampled:
        return self._sampled


class NoModel:
    ahead, replayed = True, 0

    def launch(self, batch: StepBatch) -> _Same:
        return _Same(len(batch.sampling))

    def check(self) -> None:
        pass

    def close(self) -> None:
        pass


def step_seconds(engine: Engine, batch: int, steps: int, prompt: int, **params: Any) -> float:
    """The median of decode steps of ``batch`` requests; they are ended afterwards. The engine's runner is not asked."""
    runner = engine._runner
    engine._runner = cast(StepRunner, NoModel())  # of which a decode step needs no more
    try:
        for number in range(batch):
            tokens = [(number + index) % engine.config.vocab for index in range(prompt)]
            given = SamplingParams(max_tokens=prompt + steps + 2, ignore_eos=True, **params)
            engine.add(Request(request_id=f"host-{number}", prompt_token_ids=tokens, params=given))
        while len(engine.step()) < batch:  # until all decode
            pass
        times = []
        for _ in range(steps):
            began = perf_counter()
            engine.step()
            times.append(perf_counter() - began)
    finally:
        for number in range(batch):
            engine.abort(f"host-{number}")
        while engine.has_work:
            engine.step()
        engine._runner = runner
    return statistics.median(times)


KINDS: Mapping[str, Mapping[str, float]] = {"greedy": {"temperature": 0.0}, "nucleus": {"temperature": 0.8, "top_p": 0.95}}
