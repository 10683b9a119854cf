"""Prompts that are only read: hidden states and likelihoods, against what generating tells of the same model."""

import logging

import numpy as np
import pytest

from core.compose import compose
from core.compose.build import build_engine
from core.engine import reading
from core.errors import EngineDeadError, RequestError
from core.interfaces.compute import Sampled
from core.interfaces.request import Request, SamplingParams
from tests.engine.fake_runner import FakeRunner, assert_idle, collect, generate, log_softmax, logits_of, make_engine, tokens_of
from tests.engine.fake_runner import request as plain

PROMPT = list(range(7, 150))


@pytest.fixture(scope="module", params=[512, 50])
def engine(request):
    flags = ["--max-num-batched-tokens", str(request.param), "--max-model-len", "256", "--block-size", "16"]
    engine = build_engine(compose(["--model", "random:tiny", "--dtype", "float32", "--threads", "1", *flags]))
    yield engine
    engine.close()


def generated(engine, prompt, **params):
    engine.add(Request(request_id="r", prompt_token_ids=prompt, params=SamplingParams(temperature=0.0, **params)))
    ids, infos = [], []
    while engine.has_work:
        for event in engine.step():
            ids += event.token_ids
            infos += event.logprobs or ()
    return ids, infos


def to_read(prompt, read, most=None, name="read"):
    return Request(request_id=name, prompt_token_ids=prompt, params=SamplingParams(max_tokens=1, logprobs=most), read=read)


def answer(engine, *asked):
    """Of a prompt that is read while nothing else is done. :raises RequestError: what the engine says of it."""
    engine.add(to_read(*asked))
    while engine.has_work:
        assert engine.step() == []
        for each in engine.answers():
            if each.error is not None:
                raise each.error
            return each
    raise AssertionError("no answer")


def score(engine, prompt, most):
    return answer(engine, prompt, "likelihoods", most).logprobs


def embed(engine, prompt, *, mean):
    return answer(engine, prompt, "mean" if mean else "last").state


def test_a_prompts_tokens_are_as_likely_as_they_were_when_generated(engine):
    ids, infos = generated(engine, PROMPT, max_tokens=6, logprobs=3, ignore_eos=True)
    scored = score(engine, PROMPT + ids, 3)
    assert len(scored) == len(PROMPT) + len(ids) - 1
    for told, again in zip(infos, scored[-len(ids) :], strict=True):
        assert again.logprob == pytest.approx(told.logprob, abs=1e-4)
        assert (again.rank, again.top_ids) == (0, told.top_ids)
        assert again.top_logprobs == pytest.approx(told.top_logprobs, abs=1e-4)
    assert score(engine, PROMPT[:1], 0) == []


def test_what_comes_to_the_host_of_likelihoods_is_no_larger_than_what_is_told(engine, monkeypatch):
    brought = []
    backend = engine._runner._backend
    fetch, to_host = backend.fetch, backend.to_host
    monkeypatch.setattr(backend, "fetch", lambda arrays: brought.extend(arrays) or fetch(arrays))
    monkeypatch.setattr(backend, "to_host", lambda array: brought.append(array) or to_host(array))
    score(engine, PROMPT, 3)
    assert {tuple(array.shape[1:]) for array in brought} == {(), (3,)}


def test_the_head_makes_the_next_tokens_likelihood_of_the_last_state(engine):
    state = embed(engine, PROMPT, mean=False)
    logits = state @ engine._runner._decoder.head.weight.numpy().T
    likely = logits - np.log(np.exp(logits).sum())
    [token], [info] = generated(engine, PROMPT, max_tokens=1, logprobs=0, ignore_eos=True)
    assert likely.argmax() == token
    assert likely[token] == pytest.approx(info.logprob, abs=1e-4)


def test_the_mean_is_over_every_beginnings_last_state(engine):
    few = PROMPT[:5]
    states = [embed(engine, few[:end], mean=False) for end in range(1, 6)]
    np.testing.assert_allclose(embed(engine, few, mean=True), np.mean(states, 0), atol=1e-5)


def test_reading_takes_no_page_for_good_and_disturbs_nobody(engine):
    alone, _ = generated(engine, PROMPT, max_tokens=20, ignore_eos=True)
    mean = embed(engine, PROMPT[::-1], mean=True)
    free = engine.stats().pages_free + engine.stats().pages_cached
    params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    engine.add(Request(request_id="r", prompt_token_ids=PROMPT, params=params))
    beside, answers = [], []
    for number in range(4):
        engine.add(to_read(PROMPT[::-1], "mean", name=f"read{number}"))
    while engine.has_work:
        beside += [token for event in engine.step() for token in event.token_ids]
        answers += engine.answers()
        engine.blocks.check()
    assert beside == alone
    assert [each.request_id for each in answers] == [f"read{number}" for number in range(4)]
    for each in answers:
        np.testing.assert_allclose(each.state, mean, atol=1e-5)
    assert engine.stats().pages_free + engine.stats().pages_cached == free


def test_what_does_not_fit_is_refused(engine):
    with pytest.raises(RequestError, match="the prompt has 256 tokens") as long:
        embed(engine, [1] * 256, mean=True)
    assert long.value.code == "context_length_exceeded"
    vocab = engine.config.vocab
    assert len(score(engine, PROMPT[:2], vocab)[0].top_ids) == vocab
    with pytest.raises(RequestError, match=f"logprobs must be at most {vocab}, got {vocab + 1}"):
        score(engine, PROMPT[:2], vocab + 1)


# -- beside others, on a model that tells from which tokens it has read what ------------------------------------------


class Reading(FakeRunner):
    """``done`` has what is computed, in order: "r" and the number of tokens of a prompt that is read, or "s" for a step."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.done = []
        self.error = None

    def launch(self, batch):
        self.done.append("s")
        return super().launch(batch)

    def likelihoods(self, batch, token_ids, most):
        assert not self.unread, "a step is under way"
        self.done.append(f"r{batch.num_tokens}")
        if self.error is not None:
            raise self.error
        assert len(batch.logit_rows) == batch.num_tokens <= min(self.budget, reading.LOGIT_ROWS)
        self.kv_tokens[batch.slots] = batch.token_ids
        self.kv_positions[batch.slots] = batch.positions
        logprobs = np.stack([log_softmax(logits_of(self._context(batch, int(row)))) for row in batch.logit_rows])
        order = np.argsort(-logprobs, axis=1, kind="stable")
        ranks = np.array([int(np.flatnonzero(each == token)[0]) for each, token in zip(order, token_ids, strict=True)])
        top = order[:, :most]
        own = logprobs[np.arange(len(token_ids)), token_ids]
        return Sampled(token_ids, own, ranks, top, np.take_along_axis(logprobs, top, 1))


LONG = [3 * number % 41 for number in range(100)]


def reading_engine(ahead=False, **settings):
    engine = make_engine(ahead=ahead, **settings)
    old = engine._runner
    engine._runner = Reading(settings.get("pages", 64), old.page_size, old.budget, ahead)
    return engine


def expected_logprobs(prompt):
    return [log_softmax(logits_of(prompt[:end]))[prompt[end]] for end in range(1, len(prompt))]


def run(engine, most_steps=2000):
    events, answers = {}, {}
    for _ in range(most_steps):
        if not engine.has_work:
            return events, answers
        collect(events, engine.step())
        answers |= {each.request_id: each for each in engine.answers()}
        engine.blocks.check()
    raise AssertionError("still busy")


@pytest.mark.parametrize("ahead", [False, True])
def test_decodes_go_on_between_the_chunks_of_a_long_prompt(ahead):
    engine = reading_engine(ahead, budget=16)
    beside = plain("beside", [1, 2], max_tokens=30, ignore_eos=True)
    engine.add(beside)
    early = engine.step()
    engine.add(to_read(LONG, "likelihoods", 2))
    events, answers = run(engine)
    events["beside"] = early + events["beside"]
    assert tokens_of(events["beside"]) == generate([1, 2], beside.params, 128)[0]
    first = engine._runner.done.index("r15")
    assert engine._runner.done[first : first + 14] == ["r15", "s"] * 6 + ["r10", "s"]
    logprobs = answers["read"].logprobs
    np.testing.assert_allclose([each.logprob for each in logprobs], expected_logprobs(LONG), atol=1e-6)
    assert {len(each.top_ids) for each in logprobs} == {2}
    assert engine.stats().requests_finished == {"stop": 0, "length": 1, "abort": 0, "error": 0}
    assert_idle(engine)


def test_a_prompt_that_is_read_waits_for_pages_and_begins_again_when_it_loses_them():
    engine = reading_engine(budget=16, pages=34, seqs=4)
    engine.add(plain("grows", [1, 2], max_tokens=100, ignore_eos=True))
    for name in ("first", "second"):
        engine.add(to_read(LONG, "likelihoods", 0, name))
    events, answers = run(engine)
    assert len(tokens_of(events["grows"])) == 100
    for name in ("first", "second"):
        np.testing.assert_allclose([each.logprob for each in answers[name].logprobs], expected_logprobs(LONG), atol=1e-6)
    assert_idle(engine)


def test_a_prompt_that_is_read_is_preempted_like_others():
    engine = reading_engine(budget=8, pages=30, seqs=4)
    engine.add(plain("grows", [1] * 14, max_tokens=20, ignore_eos=True))
    engine.add(to_read(LONG, "likelihoods", 0))
    events, answers = run(engine)
    assert engine.stats().preemptions == 1
    np.testing.assert_allclose([each.logprob for each in answers["read"].logprobs], expected_logprobs(LONG), atol=1e-6)
    assert len(tokens_of(events["grows"])) == 20
    assert_idle(engine)


def test_a_prompt_that_is_read_can_be_ended_in_the_midst():
    engine = reading_engine(budget=16)
    engine.add(to_read(LONG, "likelihoods", 0))
    while engine._runner.done.count("r16") < 2:
        engine.step()
    assert engine.abort("read")
    events, answers = run(engine)
    assert (events["read"][-1].finish_reason, answers, engine._runner.done.count("r16")) == ("abort", {}, 2)
    assert_idle(engine)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RequestError("not to be had", code="c"), ("not to be had", "c", 400)),
        (ArithmeticError("bad token"), ("an internal error; the server's log has the cause", "internal_error", 500)),
    ],
)
def test_what_goes_wrong_in_reading_ends_its_request_alone(error, told, caplog):
    engine = reading_engine(budget=16)
    engine._runner.error = error
    engine.add(to_read(LONG, "likelihoods", 0))
    engine.add(plain("beside", [1, 2], max_tokens=9, ignore_eos=True))
    with caplog.at_level(logging.CRITICAL, logger="dovetail.engine"):
        events, answers = run(engine)
    found = answers["read"].error
    assert (found.message, found.code, found.status) == told
    assert events["beside"][-1].finish_reason == "length"
    assert_idle(engine)


def test_a_device_lost_in_reading_ends_the_engine():
    engine = reading_engine()
    engine._runner.error = EngineDeadError("the device is gone")
    engine.add(to_read(LONG, "likelihoods", 0))
    with pytest.raises(EngineDeadError, match="the device is gone"):
        run(engine)


def test_prompts_that_are_read_wait_like_others():
    engine = reading_engine(waiting=1, seqs=1)
    engine.add(plain("runs", [1], max_tokens=None))
    engine.step()
    engine.add(to_read(LONG, "likelihoods", 0))
    with pytest.raises(RequestError, match="1 requests wait already: try again later") as full:
        engine.add(to_read(LONG, "likelihoods", 0, "another"))
    assert full.value.status == 429


def test_prompts_that_are_read_take_one_place_together():
    engine = reading_engine(budget=16, seqs=2, pages=60)  # two of them have room
    for number in range(5):
        engine.add(to_read(LONG, "likelihoods", 0, f"read{number}"))
    engine.add(plain("beside", [1, 2], max_tokens=3, ignore_eos=True))
    events, answers = {}, []
    while not events:
        collect(events, engine.step())
        answers += engine.answers()
    assert (engine._runner.done, answers) == (["s"], [])
    assert (engine.stats().num_running, engine.stats().num_waiting) == (2, 4)
    assert engine.abort("read3")
    rest, found = run(engine)
    assert list(found) == ["read0", "read1", "read2", "read4"]
    for name in found:
        np.testing.assert_allclose([each.logprob for each in found[name].logprobs], expected_logprobs(LONG), atol=1e-6)
    assert (len(tokens_of(events["beside"] + rest["beside"])), rest["read3"][-1].finish_reason) == (3, "abort")
    assert_idle(engine)


def test_one_to_read_has_its_turn_for_a_place():
    engine = reading_engine(budget=16, seqs=1)
    for name in ("first", "second"):
        engine.add(plain(name, [1, 2], max_tokens=3, ignore_eos=True))
        engine.add(to_read(LONG, "likelihoods", 0, f"read behind {name}"))
    ended = []
    while engine.has_work:
        ended += [event.request_id for event in engine.step() if event.finish_reason]
        ended += [each.request_id for each in engine.answers()]
    assert ended == ["first", "read behind first", "second", "read behind second"]
