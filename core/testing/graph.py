"""The contract of graph backends: however a step is launched, its values are those of the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from core.interfaces.compute import ComputeBackend
from core.interfaces.graph import Forward, GraphBackend, Outcome, StaticStep, StaticSteps, StepShape
from core.models.decoder import Decoder
from core.testing.contract import Contract
from core.testing.inputs import PagedSequences, random_weights, tiny_spec


class GraphBackendContract(Contract, kit=True):
    """Give ``make`` and ``backend``, a compute backend whose steps it can launch.

    ``tolerance``: the largest difference of a logit, 0 when replaying runs the very same kernels.
    """

    tolerance: float = 0.0

    def make(self) -> GraphBackend:
        """A new graph backend, as your offer's ``create`` makes it."""
        raise NotImplementedError(f"{type(self).__name__} must define make()")

    def backend(self) -> ComputeBackend:
        """A new compute backend of a framework that your offer names."""
        raise NotImplementedError(f"{type(self).__name__} must define backend()")

    # --- what is promised -------------------------------------------------------------------------------------------

    def test_prepared_steps_give_the_same_values(self) -> None:
        """Prompts, decodes of one to five sequences, mixed steps, sizes seen before and new ones."""
        script: list[dict[int, list[int]]] = [{0: list(range(20))}, {0: [5]}, {0: [6]}, {0: [7], 1: [1, 2, 3], 2: [4]}]
        script += [{0: [token], 1: [token + 1], 2: [token + 2]} for token in range(10)]
        script += [
            {3: [8] * 17, 4: [1]},
            {s: [9 + s] for s in range(5)},
            {4: [2]},
            {s: [30 + s] for s in range(4)},
            {1: [60] * 5},
        ]
        plain, prepared = self.runs(self.make())
        for number, work in enumerate(script):
            expected, found = plain(work), prepared(work)
            assert found.shape == expected.shape
            assert found.dtype == np.float32
            assert np.abs(found - expected).max() <= self.tolerance, f"step {number} ({work}) gives other logits than forward"

    def test_steps_after_a_failed_one_are_right(self) -> None:
        backend = self.make()
        failing = [False]

        def spoil(forward: Forward) -> Forward:
            def step(inputs: Any) -> Outcome:
                if failing[0]:
                    raise RuntimeError("the step failed")
                return forward(inputs)

            return step

        plain, prepared = self.runs(backend, spoil)
        first = {0: [1, 2, 3], 2: [5]}
        assert np.abs(prepared(first) - plain(first)).max() <= self.tolerance
        failing[0] = True
        with pytest.raises(RuntimeError, match="the step failed"):
            prepared({2: [6], 1: [4] * 33})  # decodes and prompts together: what is launched for it was not recorded before
        failing[0] = False
        assert np.abs(prepared({0: [9]}) - plain({0: [9]})).max() <= self.tolerance

    def test_a_step_that_is_repeated_is_the_one_that_follows(self) -> None:
        """Or ``repeat`` says that there is none. Greedy, so that the tokens that come next are known beforehand."""
        graph = self.make()
        assert graph.repeat() is None
        plain, prepared = self.runs(graph)
        prompts = {number: [3 + number] * (2 + number) for number in range(3)}
        logits = plain(prompts)
        prepared(prompts)
        for number in range(12):
            # The same rows three times, in a batch of three or of one; a repeated step would then have other rows.
            sequences = (0, 1, 2) if number % 6 < 3 else (1,)
            work = {sequence: [int(logits[sequence if len(logits) > 1 else 0].argmax())] for sequence in sequences}
            expected = plain(work)
            found = prepared(work, graph.repeat) if number % 3 else prepared(work)
            assert found.shape == expected.shape
            assert np.abs(found - expected).max() <= self.tolerance, f"step {number} is not the one that follows"
            logits = expected if len(expected) > 1 else np.tile(expected, (3, 1))

    def test_it_describes_itself_in_one_line(self) -> None:
        backend = self.make()
        self.runs(backend)
        line = backend.describe()
        assert line.strip()
        assert "\n" not in line

    def runs(self, graph: GraphBackend, spoil: Any = lambda forward: forward) -> tuple[Any, Any]:
        """Two equal engines in miniature: one that calls the decoder, one that calls what ``prepare`` made of it."""

        def prepare(forward: Forward, static_steps: StaticSteps) -> Forward:
            return graph.prepare(spoil(forward), static_steps)

        return self.run_of(lambda forward, static_steps: forward), self.run_of(prepare)

    def run_of(self, prepare: Any) -> Any:
        spec = tiny_spec()
        backend = self.backend()
        decoder = Decoder.load(spec, random_weights(spec).values(), backend)
        kv = backend.kv_cache(spec, 32, 8)
        paged = PagedSequences(32, 8)

        def static_step(shape: StepShape) -> StaticStep | None:
            return backend.static_step(shape, spec, kv)

        def outcome(step: Any) -> Outcome:
            logits = decoder.forward(step, kv)
            tokens = backend.argmax(logits)
            return Outcome(logits, tokens, isinstance(step, StaticStep) and step.advance(tokens))

        forward = prepare(outcome, static_step)

        def run(work: dict[int, list[int]], repeat: Callable[[], Outcome | None] = lambda: None) -> NDArray[Any]:
            pages = {sequence: len(paged.pages.get(sequence, ())) for sequence in work}
            batch = paged.step(work)
            found = repeat() if all(len(paged.pages[sequence]) == number for sequence, number in pages.items()) else None
            if found is None:
                found = forward(backend.upload(batch, spec, kv))
            assert found.tokens.shape == (len(work),)
            return np.array(backend.to_host(found.logits))

        return run
