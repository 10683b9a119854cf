"""The same tokens whatever the company: alone, batched, chunked, preempted, shared, interrupted."""

from __future__ import annotations

import random
from functools import partial

import pytest

from cache_prefix.prefix import PrefixPages
from core.interfaces.request import SamplingParams
from prefill_chunked.chunked import ChunkedPrefill
from tests.engine.fake_runner import VOCAB, Chunks, assert_idle, collect, drain, generate, make_engine, request, tokens_of

CONTEXT = 96


def cases(number: int, seed: int) -> list:
    """Prompts of 1 to 60 tokens, some with a common beginning, with every kind of parameter."""
    draw = random.Random(seed)
    common = [draw.randrange(VOCAB) for _ in range(30)]
    made = []
    for index in range(number):
        start = common[: draw.choice([0, 0, 8, 16, 30])]
        prompt = start + [draw.randrange(VOCAB) for _ in range(draw.randint(1, 30))]
        params = {"max_tokens": draw.choice([1, 2, 9, 30])}
        if draw.random() < 0.5:
            params |= {"temperature": draw.choice([0.5, 1.0, 2.0]), "seed": draw.randrange(-5, 2**64)}
        if draw.random() < 0.3:
            params |= {"presence_penalty": 0.5, "frequency_penalty": 0.25, "repetition_penalty": draw.choice([1.0, 1.5])}
        if draw.random() < 0.3:
            params |= {"min_tokens": draw.randint(0, params["max_tokens"]), "stop_token_ids": [3, 11]}
        if draw.random() < 0.2:
            params |= {"logit_bias": {draw.randrange(VOCAB): draw.uniform(-3, 3)}}
        params["ignore_eos"] = draw.random() < 0.5
        made.append(request(f"r{index}", prompt, **params))
    return made


def expected(made) -> dict:
    return {one.request_id: generate(one.prompt_token_ids, one.params, CONTEXT)[:2] for one in made}


def got(events) -> dict:
    return {name: (tokens_of(those), those[-1].finish_reason) for name, those in events.items()}


SHAPES = {
    "one by one": {"seqs": 1},
    "all at once": {"seqs": 40, "pages": 1200, "budget": 4000},
    "pages of 1": {"seqs": 6, "page_size": 1, "pages": 300},
    "pages of 16": {"seqs": 6, "page_size": 16, "pages": 30},
    "one page": {"seqs": 6, "page_size": 96, "pages": 3},
    "chunks of 5": {"seqs": 4, "budget": 5},
    "chunks of 1": {"seqs": 4, "budget": 1},
    "chunks of 17, shared among 3": {"seqs": 6, "budget": 17, "policy": ChunkedPrefill(3, 1, 6)},
    "tiny pool": {"seqs": 8, "pages": 24},
    "tiny pool and chunks": {"seqs": 8, "pages": 24, "budget": 11, "policy": ChunkedPrefill()},
    "shared pages": {"seqs": 8, "pages": 200, "cache": PrefixPages},
    "shared pages in a tiny pool": {"seqs": 8, "pages": 24, "cache": PrefixPages},
    "shared pages, tiny pool, chunks": {"seqs": 8, "pages": 24, "budget": 9, "cache": PrefixPages},
    "pages swapped out and in": {"seqs": 8, "pages": 24, "cache": partial(PrefixPages, host_bytes=200)},
    "pages swapped, few places, chunks": {"seqs": 8, "pages": 24, "budget": 9, "cache": partial(PrefixPages, host_bytes=12)},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_tokens_do_not_depend_on_how_they_are_scheduled(shape):
    shape = dict(SHAPES[shape])
    if "cache" in shape:
        shape["cache"] = shape["cache"]()
    made = cases(40, seed=5)
    engine = make_engine(context=CONTEXT, **shape)
    for one in made:
        engine.add(one)
    assert got(drain(engine)) == expected(made)
    assert_idle(engine)


def test_a_tiny_pool_does_preempt_and_a_large_one_does_not():
    made = [request(f"r{i}", [i, 1, 2], max_tokens=40, ignore_eos=True) for i in range(6)]
    preemptions = []
    for pages in (24, 200):
        engine = make_engine(context=CONTEXT, pages=pages)
        for one in made:
            engine.add(one)
        assert got(drain(engine)) == expected(made)
        preemptions.append(engine.stats().preemptions)
    assert preemptions[0] > 0
    assert preemptions[1] == 0


@pytest.mark.parametrize("seed", range(8))
def test_random_arrivals_and_aborts_change_nobody_elses_tokens(seed):
    draw = random.Random(seed)
    made = cases(30, seed=seed)
    engine = make_engine(
        context=CONTEXT,
        seqs=draw.choice([2, 5, 9]),
        pages=draw.choice([24, 40, 100]),
        budget=draw.choice([3, 20, 200]),
        cache=draw.choice([None, PrefixPages(), PrefixPages(host_bytes=30)]),
    )
    wanted, events, coming, aborted = expected(made), {}, list(made), set()
    while coming or engine.has_work:
        for _ in range(draw.choice([0, 0, 1, 4])):
            if coming:
                engine.add(coming.pop(0))
        if draw.random() < 0.2:
            victim = draw.choice(made).request_id
            if engine.abort(victim):
                aborted.add(victim)
            engine.blocks.check()
        collect(events, engine.step())
        engine.blocks.check()
    for name, (tokens, reason) in got(events).items():
        if name in aborted:
            assert reason == "abort"
            assert tokens == wanted[name][0][: len(tokens)]
        else:
            assert (tokens, reason) == wanted[name]
    assert set(events) == set(wanted)
    assert aborted
    assert_idle(engine)


def test_the_budget_bounds_every_step_and_decodes_are_in_every_one():
    engine = make_engine(seqs=6, budget=16, policy=ChunkedPrefill())
    for index in range(5):
        engine.add(request(f"short{index}", [index], max_tokens=60, ignore_eos=True))
    engine.step()
    engine.add(request("long", list(range(40)) * 2, max_tokens=1))
    long_steps = 0
    events = {}
    while "long" not in events:
        new = engine.step()
        collect(events, new)
        assert {event.request_id for event in new} >= {f"short{i}" for i in range(5)}
        long_steps += 1
    assert long_steps == -(-80 // 11)
    tokens = [step[0] for step in engine._runner.batches]
    assert max(tokens) == 16
    drain(engine)


def test_more_places_than_tokens_in_the_budget_starve_nobody():
    engine = make_engine(seqs=8, budget=3)
    made = [request(f"r{i}", [i, i], max_tokens=10, ignore_eos=True) for i in range(8)]
    for one in made:
        engine.add(one)
    events = {}
    for rest in drain(engine).values():
        collect(events, rest)
    assert got(events) == expected(made)


def test_cached_tokens_are_counted_once_and_outlive_preemption():
    engine = make_engine(context=CONTEXT, pages=200, cache=PrefixPages())
    prompt = list(range(22))
    engine.add(request("first", prompt, max_tokens=3, ignore_eos=True))
    first = drain(engine)["first"]
    engine.add(request("again", prompt, max_tokens=3, ignore_eos=True))
    engine.add(request("salted", prompt, max_tokens=3, ignore_eos=True, salt="other"))
    events = drain(engine)
    assert [event.num_cached_tokens for event in first] == [0, 0, 0]
    assert [event.num_cached_tokens for event in events["again"]] == [20, 20, 20]
    assert [event.num_cached_tokens for event in events["salted"]] == [0, 0, 0]
    stats = engine.stats()
    assert (stats.prompt_tokens, stats.cached_prompt_tokens, stats.generation_tokens) == (66, 20, 9)
    assert stats.pages_cached > 0
    assert tokens_of(events["again"]) == tokens_of(events["salted"]) == tokens_of(first)


def test_preempted_requests_find_their_own_pages_again():
    engine = make_engine(context=CONTEXT, pages=24, cache=PrefixPages())
    for index in range(6):
        engine.add(request(f"r{index}", [index] * 9, max_tokens=30, ignore_eos=True))
    events = drain(engine)
    assert engine.stats().preemptions > 0
    assert engine.stats().prompt_tokens == 54
    assert engine.stats().cached_prompt_tokens == 0
    assert all(event.num_cached_tokens == 0 for those in events.values() for event in those)
    assert sum(tokens for tokens, _, _ in engine._runner.batches) < 6 * 39 + engine.stats().preemptions * 39


def test_a_policy_that_grants_nothing_cannot_stop_the_engine():
    class Never(Chunks):
        def grant(self, remaining, budget):
            return 0

    made = [request(f"r{i}", [i] * 20, max_tokens=4) for i in range(3)]
    engine = make_engine(context=CONTEXT, budget=8, policy=Never())
    for one in made:
        engine.add(one)
    assert got(drain(engine)) == expected(made)


def test_a_policy_that_grants_too_much_is_bounded():
    class Greedy(Chunks):
        def grant(self, remaining, budget):
            return 10**6

    made = [request(f"r{i}", [i] * 20, max_tokens=4) for i in range(3)]
    engine = make_engine(context=CONTEXT, budget=8, policy=Greedy())
    for one in made:
        engine.add(one)
    assert got(drain(engine)) == expected(made)
    assert max(tokens for tokens, _, _ in engine._runner.batches) == 8


def test_drawn_seeds_depend_on_the_engine_seed_and_the_order_of_arrival_alone():
    def run(seed, seqs):
        engine = make_engine(seed=seed, seqs=seqs)
        for index in range(4):
            engine.add(request(f"r{index}", [1, 2], temperature=1.0, max_tokens=12, ignore_eos=True))
        return got(drain(engine))

    assert run(0, 1) == run(0, 4)
    assert run(0, 1) != run(1, 1)
    outputs = [tuple(tokens) for tokens, _ in run(0, 4).values()]
    assert len(set(outputs)) == 4


def test_a_seed_gives_the_same_tokens_in_any_batch():
    params = {"temperature": 1.0, "seed": -3, "max_tokens": 12, "ignore_eos": True}
    alone = make_engine()
    alone.add(request("x", [5, 6, 7], **params))
    crowded = make_engine(pages=40, budget=12, policy=Chunks())
    for index in range(7):
        crowded.add(request(f"other{index}", [index] * 11, temperature=1.5, max_tokens=20))
    crowded.add(request("x", [5, 6, 7], **params))
    assert tokens_of(drain(alone)["x"]) == tokens_of(drain(crowded)["x"])
    assert tokens_of(drain_of("x", params)) == generate([5, 6, 7], SamplingParams(**params), 128)[0]


def drain_of(name, params):
    engine = make_engine()
    engine.add(request(name, [5, 6, 7], **params))
    return drain(engine)[name]
