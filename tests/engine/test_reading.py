"""Prompts that are only read: hidden states and likelihoods, against what generating tells of the same model."""

import numpy as np
import pytest

from core.compose import compose
from core.compose.build import build_engine
from core.errors import RequestError
from core.interfaces.request import Request, SamplingParams

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


def test_a_prompts_tokens_are_as_likely_as_they_were_when_generated(engine):
    ids, infos = generated(engine, PROMPT, max_tokens=6, logprobs=3, ignore_eos=True)
    scored = engine.score(PROMPT + ids, 3)
    assert len(scored) == len(PROMPT) + len(ids) - 1
    for told, again in zip(infos, scored[-len(ids) :], strict=True):
        assert again.logprob == pytest.approx(told.logprob, abs=1e-4)
        assert (again.rank, again.top_ids) == (0, told.top_ids)
        assert again.top_logprobs == pytest.approx(told.top_logprobs, abs=1e-4)
    assert engine.score(PROMPT[:1], 0) == []


def test_what_comes_to_the_host_of_likelihoods_is_no_larger_than_what_is_told(engine, monkeypatch):
    brought = []
    backend = engine._runner._backend
    fetch, to_host = backend.fetch, backend.to_host
    monkeypatch.setattr(backend, "fetch", lambda arrays: brought.extend(arrays) or fetch(arrays))
    monkeypatch.setattr(backend, "to_host", lambda array: brought.append(array) or to_host(array))
    engine.score(PROMPT, 3)
    assert {tuple(array.shape[1:]) for array in brought} == {(), (3,)}


def test_the_head_makes_the_next_tokens_likelihood_of_the_last_state(engine):
    state = engine.embed(PROMPT, mean=False)
    logits = state @ engine._runner._decoder.head.weight.numpy().T
    likely = logits - np.log(np.exp(logits).sum())
    [token], [info] = generated(engine, PROMPT, max_tokens=1, logprobs=0, ignore_eos=True)
    assert likely.argmax() == token
    assert likely[token] == pytest.approx(info.logprob, abs=1e-4)


def test_the_mean_is_over_every_beginnings_last_state(engine):
    few = PROMPT[:5]
    states = [engine.embed(few[:end], mean=False) for end in range(1, 6)]
    np.testing.assert_allclose(engine.embed(few, mean=True), np.mean(states, 0), atol=1e-5)


def test_reading_takes_no_page_for_good_and_disturbs_nobody(engine):
    alone, _ = generated(engine, PROMPT, max_tokens=20, ignore_eos=True)
    free = engine.stats().pages_free + engine.stats().pages_cached
    params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    engine.add(Request(request_id="r", prompt_token_ids=PROMPT, params=params))
    beside = []
    while engine.has_work:
        engine.embed(PROMPT[::-1], mean=True)
        beside += [token for event in engine.step() for token in event.token_ids]
    assert beside == alone
    assert engine.stats().pages_free + engine.stats().pages_cached == free
    engine.blocks.check()


def test_what_does_not_fit_is_refused(engine):
    with pytest.raises(RequestError, match="the prompt has 256 tokens") as long:
        engine.embed([1] * 256, mean=True)
    assert long.value.code == "context_length_exceeded"
    vocab = engine.config.vocab
    assert len(engine.score(PROMPT[:2], vocab)[0].top_ids) == vocab
    with pytest.raises(RequestError, match=f"logprobs must be at most {vocab}, got {vocab + 1}"):
        engine.score(PROMPT[:2], vocab + 1)
    taken = engine.blocks.lend(engine.blocks.num_available)
    with pytest.raises(RequestError, match="no memory is free for this prompt now: try again later") as full:
        engine.score(PROMPT, 0)
    engine.blocks.take_back(taken)
    assert full.value.status == 429
