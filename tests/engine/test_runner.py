"""The order of operations in a step, on a backend that is nothing but lists of what was done."""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

from core.engine.runner import Runner
from core.errors import EngineDeadError
from core.interfaces.compute import LogitAdjustment, SamplingRows, StepBatch
from core.interfaces.graph import GraphBackend, Outcome, StaticStep, StepShape
from core.interfaces.sampler import Sampler

LOGITS = np.array([[0.0, 3.0, 1.0], [5.0, 4.0, 2.0]], np.float32)


class Uploaded(NamedTuple):
    batch: StepBatch
    spec: str
    kv: str

    @property
    def shape(self):
        return self.batch.shape


class Recorded(StaticStep):
    def __init__(self, shape):
        self.shape, self.batch, self.advanced = shape, batch(), []

    def fill(self, step):
        raise AssertionError("nobody fills it here")

    def advance(self, tokens):
        self.advanced.append(tokens.tolist())
        return True


class Backend:
    device = "cpu"
    ahead = True
    late = False
    samples = False  # whether it has sampling parameters on the device

    def __init__(self):
        self.done = []
        self.lost = False
        self.closed = False

    def memory(self):
        if self.lost:
            raise RuntimeError("driver error")
        return 1, 2

    def upload(self, batch, spec, kv):
        return Uploaded(batch, spec, kv)

    def static_step(self, shape, spec, kv):
        return (shape, spec, kv)

    def follow(self, step, tokens):
        self.done.append(f"follow {tokens.tolist()}")

    def sampling(self, step):
        return "parameters" if self.samples and len(step.batch.sampling) else None

    def adjust(self, logits, adjustment):
        self.done.append("adjust")
        logits[:] = -logits
        return logits

    def argmax(self, logits):
        self.done.append("argmax")
        return logits.argmax(axis=1)

    def clone(self, array):
        self.done.append("clone")
        return array.copy()

    def logprobs(self, logits, tokens, most):
        self.done.append(f"logprobs {most}")
        order = np.argsort(-logits, axis=1, kind="stable")
        rows = np.arange(len(logits))
        ranks = (logits > logits[rows, tokens][:, None]).sum(axis=1)
        return logits[rows, tokens], ranks, order[:, :most], np.take_along_axis(logits, order[:, :most], 1)

    def fetch(self, arrays):
        def wait():
            if self.late:
                raise ValueError("found late")
            return [np.asarray(array) for array in arrays]

        return wait

    def close(self):
        self.closed = True


class Decoder:
    spec = SimpleNamespace(vocab=3)

    def __init__(self, backend):
        self.backend = backend

    def forward(self, step, kv):
        if isinstance(step, Recorded):
            return LOGITS.copy()
        batch, spec, uploaded_kv = step
        assert (spec, uploaded_kv) == (self.spec, kv)
        if batch.token_ids[0] == 99:
            raise ValueError("a bad token")
        return LOGITS[: len(batch.sampling)].copy()


class Host(Sampler):
    def sample(self, logits, rows):
        logits[:] = 0  # a sampler may
        return np.full(len(rows), 2, np.int64)


class Device(Host):
    """Draws by itself: always the third."""

    def on_device(self, device):
        return lambda logits, rows: np.full(len(logits), 2, np.int64)


class Graph(GraphBackend):
    def __init__(self):
        self.replayed = 0
        self.closed = False

    def describe(self):
        return "counting"

    def close(self):
        self.closed = True

    def prepare(self, forward, static_steps, draws=False):
        self.static_steps, self.forward, self.draws = static_steps, forward, draws

        def replay(step):
            self.replayed += 1
            return forward(step)

        return replay

    def repeat(self):
        self.repeated = True
        return Outcome(LOGITS.copy(), np.array([2, 2]), True)


def batch(rows=2, *, greedy=True, logprobs=-1, adjusted=False, token=1, continues=False):
    empty, nothing = np.zeros(0, np.int32), np.zeros(0, np.float32)
    adjustment = LogitAdjustment(
        empty, empty, nothing, empty, empty, empty, empty, nothing, np.ones(rows), np.zeros(rows), np.zeros(rows)
    )
    sampling = SamplingRows(
        temperature=np.full(rows, 0.0 if greedy else 1.0, np.float32),
        top_k=np.zeros(rows, np.int32),
        top_p=np.ones(rows, np.float32),
        min_p=np.zeros(rows, np.float32),
        seeds=np.zeros(rows, np.uint64),
        positions=np.ones(rows, np.int64),
        logprobs=np.full(rows, logprobs, np.int32),
        adjustment=adjustment if adjusted else None,
        all_greedy=greedy,
    )
    tokens = np.full(2, token, np.int32)
    return StepBatch(
        token_ids=tokens,
        positions=np.zeros(2, np.int32),
        slots=np.arange(2),
        query_starts=np.arange(3, dtype=np.int32),
        context_lens=np.ones(2, np.int32),
        page_table=np.zeros((2, 1), np.int32),
        logit_rows=np.arange(rows),
        num_decodes=2,
        sampling=sampling,
        continues=continues,
    )


def launched(runner, batch):
    return runner.launch(batch).wait()


@pytest.fixture
def backend():
    return Backend()


@pytest.fixture
def graph():
    return Graph()


@pytest.fixture
def runner(backend, graph):
    return Runner(Decoder(backend), "the kv", Host(), graph)


def test_greedy_is_an_argmax_and_nothing_else(runner, backend, graph):
    sampled = launched(runner, batch())
    assert sampled.token_ids.tolist() == [1, 0]
    assert sampled.logprobs is None
    assert backend.done == ["argmax"]
    assert graph.replayed == runner.replayed == 1


def test_a_row_that_is_not_greedy_goes_through_the_sampler(runner, backend):
    assert launched(runner, batch(greedy=False)).token_ids.tolist() == [2, 2]
    assert backend.done == []


@pytest.mark.parametrize(
    ("kind", "tokens", "done"),
    [
        ({}, [1, 0], ["argmax", "logprobs 2"]),
        ({"adjusted": True}, [0, 2], ["clone", "adjust", "argmax", "logprobs 2"]),
        ({"greedy": False}, [2, 2], ["clone", "logprobs 2"]),
    ],
    ids=["greedy", "adjusted", "sampled"],
)
def test_logprobs_are_of_the_raw_logits_and_copy_them_only_when_they_would_be_lost(runner, backend, kind, tokens, done):
    sampled = launched(runner, batch(logprobs=2, **kind))
    assert sampled.token_ids.tolist() == tokens
    assert sampled.logprobs.tolist() == [LOGITS[0][tokens[0]], LOGITS[1][tokens[1]]]
    assert sampled.ranks.tolist() == [sorted(-LOGITS[row]).index(-LOGITS[row][token]) for row, token in enumerate(tokens)]
    assert sampled.top_ids.tolist() == [[1, 2], [0, 1]]
    assert sampled.top_logprobs.tolist() == [[3.0, 1.0], [5.0, 4.0]]
    assert backend.done == done


@pytest.mark.parametrize(
    ("drawn", "error"),
    [
        (np.array([2, 3]), f"the sampler {__name__}.Host gave the token 3, and the model has 3"),
        (np.array([-1, 2]), f"the sampler {__name__}.Host gave the token -1, and the model has 3"),
        (np.array([2]), f"the sampler {__name__}.Host gave ndarray[1] instead of one token for each of 2 rows"),
        (None, f"the sampler {__name__}.Host gave NoneType[] instead of one token for each of 2 rows"),
    ],
    ids=["high", "negative", "few", "none"],
)
def test_a_sampler_that_gives_no_tokens_fails_the_step_by_its_name(runner, monkeypatch, drawn, error):
    monkeypatch.setattr(Host, "sample", lambda self, logits, rows: drawn)
    with pytest.raises((TypeError, ValueError)) as raised:
        launched(runner, batch(greedy=False))
    assert str(raised.value) == error


def test_adjusted_logits_are_what_is_chosen_from(runner, backend):
    assert launched(runner, batch(adjusted=True)).token_ids.tolist() == [0, 2]
    assert backend.done == ["adjust", "argmax"]


def test_a_step_that_samples_nothing_still_runs(runner, backend, graph):
    assert launched(runner, batch(rows=0)).token_ids.tolist() == []
    assert graph.replayed == runner.replayed == 1
    assert backend.done == []


def test_an_error_of_the_step_passes_while_the_device_answers(runner):
    with pytest.raises(ValueError, match="a bad token"):
        launched(runner, batch(token=99))


def test_an_error_on_a_device_that_is_gone_is_the_end(runner, backend):
    backend.lost = True
    with pytest.raises(EngineDeadError, match="the device cpu no longer answers: driver error") as caught:
        launched(runner, batch(token=99))
    assert isinstance(caught.value.__cause__, ValueError)


def test_an_error_that_is_found_late_passes_too_or_is_the_end(runner, backend):
    backend.late = True
    steps = [runner.launch(batch()) for _ in range(2)]
    with pytest.raises(ValueError, match="found late"):
        steps[0].wait()
    backend.lost = True
    with pytest.raises(EngineDeadError, match="the device cpu no longer answers: driver error"):
        steps[1].wait()


def test_a_token_that_the_step_before_gives_is_put_in_its_place_by_the_backend(runner, backend):
    runner.launch(batch())
    runner.launch(batch(rows=1))
    assert backend.done == ["argmax", "argmax"]
    runner.launch(batch(token=-1))
    assert backend.done[2:] == ["follow [1]", "argmax"]


@pytest.fixture
def drawing(backend, graph):
    """A runner whose steps end in tokens, drawn ones too."""
    backend.samples = True
    return Runner(Decoder(backend), "the kv", Device(), graph)


@pytest.mark.parametrize(("greedy", "tokens"), [(True, [1, 0]), (False, [2, 2])])
def test_a_step_ends_in_its_tokens_where_nothing_needs_the_host(drawing, graph, backend, greedy, tokens):
    assert graph.draws
    assert launched(drawing, batch(greedy=greedy)).token_ids.tolist() == tokens
    recorded = Recorded(StepShape("decode", 2, 2, drawn=not greedy))
    outcome = graph.forward(recorded)
    assert (outcome.tokens.tolist(), outcome.advanced, recorded.advanced) == (tokens, True, [tokens])


def test_adjusted_rows_are_chosen_behind_the_step_all_the_same(drawing, backend):
    assert launched(drawing, batch(adjusted=True)).token_ids.tolist() == [0, 2]
    assert launched(drawing, batch(adjusted=True, greedy=False)).token_ids.tolist() == [2, 2]
    assert backend.done == ["argmax", "adjust", "argmax", "argmax", "adjust"]


def test_without_a_draw_on_the_device_a_step_that_is_drawn_ends_in_its_logits(runner, backend, graph):
    backend.samples = True
    assert not graph.draws
    assert launched(runner, batch(greedy=False)).token_ids.tolist() == [2, 2]
    assert backend.done == []
    assert graph.forward(Recorded(StepShape("decode", 2, 2, drawn=True))).tokens is None


def test_a_step_that_continues_is_repeated_only_if_the_tokens_told_are_those_it_left(drawing, graph):
    graph.repeated = False
    drawing.launch(batch())  # nothing of it was recorded
    drawing.launch(batch(continues=True))
    assert not graph.repeated
    left = Outcome(LOGITS.copy(), np.array([1, 0]), True)
    drawing._forward = lambda step: left
    drawing.launch(batch(adjusted=True))
    drawing.launch(batch(continues=True))  # whoever adjusts the logits chooses other tokens
    assert not graph.repeated
    assert launched(drawing, batch(continues=True)).token_ids.tolist() == [2, 2]
    assert graph.repeated


def test_close_closes_the_graphs_and_the_backend(runner, backend, graph):
    runner.close()
    assert graph.closed
    assert backend.closed


def test_how_steps_are_launched_is_logged(backend, graph, caplog):
    with caplog.at_level("INFO", logger="dovetail.engine"):
        Runner(Decoder(backend), "the kv", Host(), graph)
    assert [record.message for record in caplog.records] == ["steps are launched so: counting"]


def test_a_graph_backend_may_ask_for_static_steps(runner, graph):
    assert graph.static_steps(StepShape("decode", 4, 4)) == (StepShape("decode", 4, 4), Decoder.spec, "the kv")
