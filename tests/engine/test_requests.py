"""What is taken, what is refused, how a request ends, and what is reported of it."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from core.errors import EngineDeadError, RequestError
from core.interfaces.grammar import GrammarBackend, Matcher
from core.interfaces.request import Grammar, SamplingParams
from plain.private import PrivatePages
from tests.engine.fake_runner import (
    EOS,
    VOCAB,
    Chunks,
    assert_idle,
    drain,
    generate,
    log_softmax,
    logits_of,
    make_engine,
    request,
    tokens_of,
)

CONTEXT = 64


def run(prompt, *, engine=None, **params):
    engine = engine or make_engine(context=CONTEXT)
    engine.add(request("r", prompt, **params))
    events = drain(engine)["r"]
    assert_idle(engine)
    return events


def greedy(prompt, number):
    return generate(prompt, SamplingParams(temperature=0.0, max_tokens=number, ignore_eos=True), 10**6)[0]


def prompt_with_eos_at(place):
    """A prompt whose greedy continuation has its first eos as token number ``place`` (from 1)."""
    for first in range(VOCAB):
        for second in range(VOCAB):
            output = greedy([first, second], place)
            if EOS in output and output.index(EOS) + 1 == place:
                return [first, second]
    raise AssertionError("no such prompt")


# --- how it ends --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 7])
def test_max_tokens_gives_exactly_that_many(number):
    events = run([1, 2, 3], max_tokens=number, ignore_eos=True)
    assert tokens_of(events) == greedy([1, 2, 3], number)
    assert [event.finish_reason for event in events] == [None] * (number - 1) + ["length"]
    assert events[-1].stop_token is None


def test_without_max_tokens_the_context_is_filled():
    events = run([1, 2, 3], max_tokens=None, ignore_eos=True)
    assert len(tokens_of(events)) == CONTEXT - 3
    assert events[-1].finish_reason == "length"


def test_the_longest_prompt_still_gets_a_token():
    events = run([1] * (CONTEXT - 1), max_tokens=None, ignore_eos=True)
    assert len(tokens_of(events)) == 1
    assert events[-1].finish_reason == "length"


def test_eos_stops_and_is_the_last_token():
    prompt = prompt_with_eos_at(4)
    events = run(prompt, max_tokens=20)
    assert tokens_of(events) == greedy(prompt, 4)
    assert (events[-1].finish_reason, events[-1].stop_token) == ("stop", EOS)


def test_eos_at_max_tokens_is_a_stop():
    events = run(prompt_with_eos_at(4), max_tokens=4)
    assert (events[-1].finish_reason, events[-1].stop_token) == ("stop", EOS)


def test_eos_after_max_tokens_is_a_length():
    events = run(prompt_with_eos_at(4), max_tokens=3)
    assert (events[-1].finish_reason, events[-1].stop_token) == ("length", None)


def test_eos_as_the_very_first_token():
    events = run(prompt_with_eos_at(1), max_tokens=5)
    assert [(event.token_ids, event.finish_reason) for event in events] == [([EOS], "stop")]


def test_ignore_eos_goes_on():
    prompt = prompt_with_eos_at(4)
    events = run(prompt, max_tokens=9, ignore_eos=True)
    assert tokens_of(events) == greedy(prompt, 9)
    assert events[-1].finish_reason == "length"


def test_a_stop_token_of_one_request_ends_that_request_alone():
    wanted = greedy([1, 2, 3], 12)
    stop = wanted[5]
    engine = make_engine(context=CONTEXT)
    engine.add(request("with", [1, 2, 3], max_tokens=12, ignore_eos=True, stop_token_ids=[stop, 0]))
    engine.add(request("without", [1, 2, 3], max_tokens=12, ignore_eos=True))
    events = drain(engine)
    assert tokens_of(events["with"]) == wanted[: wanted.index(stop) + 1]
    assert (events["with"][-1].finish_reason, events["with"][-1].stop_token) == ("stop", stop)
    assert tokens_of(events["without"]) == wanted


def test_several_eos_tokens_each_stop():
    wanted = greedy([1, 2, 3], 12)
    for place in (2, 5):
        engine = make_engine(context=CONTEXT, eos=(wanted[place], 10**9))
        events = run([1, 2, 3], engine=engine, max_tokens=12)
        assert events[-1].stop_token == wanted[place]
        assert tokens_of(events) == wanted[: wanted.index(wanted[place]) + 1]


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_min_tokens_bans_eos_and_stop_tokens_until_reached(ignore_eos):
    prompt = prompt_with_eos_at(2)
    plain = greedy(prompt, 8)
    params = {"max_tokens": 30, "min_tokens": 6, "stop_token_ids": [plain[0]], "ignore_eos": ignore_eos}
    events = run(prompt, **params)
    tokens, reason, _ = generate(prompt, SamplingParams(temperature=0.0, **params), CONTEXT)
    assert (tokens_of(events), events[-1].finish_reason) == (tokens, reason)
    assert len(tokens) > 6
    assert not {EOS, plain[0]} & set(tokens[:6])


def test_min_tokens_bans_last_for_exactly_that_many_tokens():
    engine = make_engine(context=CONTEXT)
    engine.add(request("r", [1, 2], max_tokens=5, min_tokens=2, ignore_eos=True, stop_token_ids=[9]))
    banned = []
    while engine.has_work:
        engine.step()
        adjustment = engine._runner.last.sampling.adjustment
        banned.append(None if adjustment is None else sorted(adjustment.banned_tokens.tolist()))
    assert banned == [[EOS, 9], [EOS, 9], None, None, None]


def test_a_stop_does_not_count_below_min_tokens_even_when_nothing_else_can_be_sampled():
    every = list(range(VOCAB))
    events = run([1, 2], max_tokens=8, min_tokens=3, stop_token_ids=every)
    assert len(tokens_of(events)) == 4
    assert events[-1].finish_reason == "stop"


# --- what is refused ----------------------------------------------------------------------------------------------------


def refusal(prompt, engine=None, name="r", **params):
    engine = engine or make_engine(context=CONTEXT)
    before = engine.stats()
    with pytest.raises(RequestError) as caught:
        engine.add(request(name, prompt, **params))
    assert engine.stats() == before
    return caught.value


@pytest.mark.parametrize(
    ("prompt", "params", "param", "code"),
    [
        ([], {}, "prompt", "invalid_value"),
        ([1] * CONTEXT, {}, "prompt", "context_length_exceeded"),
        ([1, VOCAB], {}, "prompt", "invalid_value"),
        ([-1], {}, "prompt", "invalid_value"),
        ([1.5], {}, "prompt", "invalid_value"),
        ([1], {"stop_token_ids": [VOCAB]}, "stop_token_ids", "invalid_value"),
        ([1], {"logit_bias": {VOCAB: 1.0}}, "logit_bias", "invalid_value"),
        ([1], {"logprobs": VOCAB + 1}, "logprobs", "invalid_value"),
        ([1] * 60, {"max_tokens": 5}, "max_tokens", "context_length_exceeded"),
        ([1] * 60, {"max_tokens": None, "min_tokens": 5}, "min_tokens", "context_length_exceeded"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused(prompt, params, param, code):
    error = refusal(prompt, **params)
    assert (error.param, error.code, error.status) == (param, code, 400)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"stop": "x" * 4097}, "each stop string has at most 4096 characters, not 4097"),
        ({"stop_token_ids": [1] * 1025}, "stop_token_ids takes at most 1024 tokens, got 1025"),
    ],
)
def test_what_ends_a_request_is_bounded(params, message):
    with pytest.raises(RequestError) as caught:
        SamplingParams(**params)
    assert (caught.value.message, caught.value.param) == (message, next(iter(params)))


def test_refusals_say_what_is_left():
    assert str(refusal([1] * 60, max_tokens=5)) == (
        "the prompt has 60 tokens and max_tokens asks for 5 more; the context is 64 tokens: "
        "shorten the prompt, or ask for at most 4"
    )


def test_max_tokens_that_just_fit_are_taken():
    assert len(tokens_of(run([1] * 60, max_tokens=4, ignore_eos=True))) == 4


def test_a_pool_smaller_than_the_context_bounds_the_context():
    engine = make_engine(context=CONTEXT, pages=5, page_size=4)
    assert refusal([1] * 20, engine).code == "context_length_exceeded"
    assert len(tokens_of(run([1] * 19, engine=engine, max_tokens=None, ignore_eos=True))) == 1


def test_an_id_in_use_is_refused_until_its_last_event_is_out():
    engine = make_engine(context=CONTEXT)
    engine.add(request("r", [1]))
    assert str(refusal([2], engine)) == "request id 'r' is in use"
    engine.step()
    assert refusal([2], engine).code == "duplicate_id"
    engine.abort("r")
    assert refusal([2], engine).code == "duplicate_id"
    engine.step()
    engine.add(request("r", [2]))
    drain(engine)


def test_a_full_queue_is_refused_with_429():
    engine = make_engine(context=CONTEXT, seqs=1, waiting=2)
    engine.add(request("a", [1], max_tokens=3, ignore_eos=True))
    engine.step()
    engine.add(request("b", [1]))
    engine.add(request("c", [1]))
    error = refusal([1], engine, name="d")
    assert (error.status, error.code) == (429, "queue_full")
    assert str(error) == "2 requests wait already: try again later"
    engine.abort("b")
    engine.add(request("d", [1]))
    assert set(drain(engine)) == {"a", "b", "c", "d"}


def test_a_burst_that_can_run_at_once_does_not_count_as_waiting():
    engine = make_engine(context=CONTEXT, seqs=4, waiting=2)
    for name in "abcdef":  # no step in between
        engine.add(request(name, [1], max_tokens=1))
    assert refusal([1], engine, name="g").code == "queue_full"
    assert set(drain(engine)) == set("abcdef")
    assert engine.limits.at_once == 6


# --- order --------------------------------------------------------------------------------------------------------------


def test_priorities_then_arrival():
    engine = make_engine(context=CONTEXT, seqs=1)
    for name, priority in (("a", 5), ("b", 0), ("c", 5), ("d", -1), ("e", 0)):
        engine.add(request(name, [1, 2], priority=priority, max_tokens=1))
    assert list(drain(engine)) == ["d", "b", "e", "a", "c"]


def test_the_lowest_priority_is_preempted_and_keeps_its_place():
    engine = make_engine(context=CONTEXT, pages=20, page_size=4, seqs=3)
    params = {"max_tokens": 40, "ignore_eos": True}
    engine.add(request("low", [1] * 8, priority=9, **params))
    engine.add(request("high", [2] * 8, priority=0, **params))
    engine.add(request("middle", [3] * 8, priority=5, **params))
    engine.step()
    engine.add(request("later", [4] * 8, priority=9, **params))
    ended = [name for name, _ in sorted(_last_steps(engine).items(), key=lambda one: one[1])]
    assert ended == ["high", "middle", "low", "later"]
    assert engine.stats().preemptions > 0


def _last_steps(engine):
    last, number = {}, 0
    while engine.has_work:
        number += 1
        for event in engine.step():
            last[event.request_id] = number
        engine.blocks.check()
    return last


def test_nobody_overtakes_a_long_prompt_that_waits_for_pages():
    engine = make_engine(context=CONTEXT, pages=16, page_size=4, seqs=8)
    engine.add(request("running", [1] * 30, max_tokens=6, ignore_eos=True))
    engine.step()
    engine.add(request("long", [2] * 50, max_tokens=2, ignore_eos=True))
    for index in range(4):
        engine.add(request(f"short{index}", [3], max_tokens=2, ignore_eos=True))
    first = {}
    number = 0
    while engine.has_work:
        number += 1
        for event in engine.step():
            first.setdefault(event.request_id, number)
    assert first["running"] < first["long"] <= min(first[f"short{i}"] for i in range(4))


# --- aborts and failures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 3, 5])
def test_an_abort_frees_everything_at_once(steps):
    engine = make_engine(context=CONTEXT, budget=4, policy=Chunks())
    engine.add(request("r", [1] * 10, max_tokens=20, ignore_eos=True))  # begun by step 1 to 3, decoding from then on
    seen = []
    for _ in range(steps):
        seen += engine.step()
    assert engine.abort("r")
    assert not engine.abort("r")
    assert_idle(engine)
    engine.blocks.check()
    assert engine.has_work
    assert [(e.token_ids, e.finish_reason, e.num_cached_tokens) for e in engine.step()] == [([], "abort", 0)]
    assert not engine.has_work
    assert len(seen) == max(0, steps - 2)


def test_a_preempted_request_can_be_aborted():
    engine = make_engine(context=CONTEXT, pages=16, seqs=3)
    for name in "abc":
        engine.add(request(name, [1] * 8, max_tokens=40, ignore_eos=True))
    while not engine.stats().preemptions:
        engine.step()
    assert engine.abort("c")
    engine.blocks.check()
    events = drain(engine)
    assert [event.finish_reason for event in events["c"]] == ["abort"]
    assert {events[name][-1].finish_reason for name in "ab"} == {"length"}


def test_an_unknown_id_is_not_aborted():
    engine = make_engine(context=CONTEXT)
    assert not engine.abort("nobody")
    assert not engine.has_work


def test_a_failing_step_ends_its_requests_and_spares_the_others(caplog):
    engine = make_engine(context=CONTEXT, seqs=2)
    engine._runner.fail_on = 40
    engine.add(request("good", [1], max_tokens=30, ignore_eos=True, logit_bias={40: -100}))
    engine.add(request("bad", [40], max_tokens=3))
    engine.add(request("waits", [2], max_tokens=3, ignore_eos=True, logit_bias={40: -100}))
    with caplog.at_level(logging.ERROR, logger="dovetail.engine"):
        events = drain(engine)
    [said] = caplog.records
    assert said.getMessage() == "a step of 2 requests failed: good, bad"
    assert str(said.exc_info[1]) == "bad token"
    for name in ("good", "bad"):
        told = "the step failed; the server's log has the cause"
        assert (events[name][-1].finish_reason, events[name][-1].error) == ("error", told)
    assert events["waits"][-1].finish_reason == "length"
    assert engine.stats().requests_finished == {"stop": 0, "length": 1, "abort": 0, "error": 2}
    assert_idle(engine)


class Counting(Matcher):
    """Allows 11, 12 and so on; breaks in ``method`` when it has accepted one."""

    def __init__(self, method):
        self.method, self.accepted = method, 0

    def allowed(self):
        if self.accepted and self.method == "allowed":
            raise KeyError("no such state")
        return np.array([1 << (11 + self.accepted), 0], np.uint32)

    def accept(self, token):
        if self.accepted and self.method == "accept":
            raise KeyError("no such state")
        assert token == 11 + self.accepted
        self.accepted += 1


class Countings(GrammarBackend):
    def attach(self, vocabulary):
        pass

    def matcher(self, grammar):
        return Counting(grammar.text)


@pytest.mark.parametrize("method", ["allowed", "accept"])
@pytest.mark.parametrize("others", [(), ("plain", "good")])
def test_a_grammar_that_breaks_ends_its_own_request_alone(caplog, method, others):
    engine = make_engine(context=CONTEXT, grammars=Countings())
    bias = {EOS: 100}  # sampled as soon as everything is allowed: no "stop" then, for the form was not kept to
    engine.add(request("bad", [1], max_tokens=9, grammar=Grammar("regex", method), logit_bias=bias))
    for name in others:
        grammar = Grammar("regex", "") if name == "good" else None
        engine.add(request(name, [2], max_tokens=3, grammar=grammar, ignore_eos=True))
    with caplog.at_level(logging.CRITICAL, logger="dovetail.engine"):
        events = drain(engine)
    engine.close()
    last = events["bad"][-1]
    assert (last.finish_reason, last.error) == ("error", "the grammar broke; the server's log has the cause")
    assert [events[name][-1].finish_reason for name in others] == ["length"] * len(others)
    if others:
        assert tokens_of(events["good"]) == [11, 12, 13]
    assert_idle(engine)


def test_a_lost_device_ends_the_engine():
    engine = make_engine(context=CONTEXT)
    engine._runner.lost = True
    engine.add(request("r", [1]))
    with pytest.raises(EngineDeadError, match="the device is gone"):
        engine.step()


def test_a_cache_policy_that_loses_pages_is_found_out():
    class Loses(PrivatePages):
        def leave(self, pages):
            pass

    engine = make_engine(context=CONTEXT, pages=16, cache=Loses())
    engine.add(request("a", [1] * 40, max_tokens=2, ignore_eos=True))
    engine.step()
    engine.step()
    with pytest.raises(RuntimeError, match=r"5 pages free \(5 unowned\) \+ 0 used \+ 0 kept are not 16"):
        engine.blocks.check()
    engine.add(request("b", [1] * 40))
    with pytest.raises(EngineDeadError, match="no page can be had for request b though nothing runs: 5 of 16 are free"):
        engine.step()


def test_close_ends_what_runs():
    engine = make_engine(context=CONTEXT, seqs=1)
    engine.add(request("a", [1]))
    engine.add(request("b", [1]))
    engine.step()
    engine.close()
    assert engine._runner.closed
    assert_idle(engine)
    assert engine.stats().requests_finished["abort"] == 2


# --- what is reported ---------------------------------------------------------------------------------------------------


def test_logprobs_are_those_of_the_raw_logits():
    prompt = [1, 2, 3]
    params = {"max_tokens": 6, "ignore_eos": True, "temperature": 2.0, "seed": 4, "presence_penalty": 1.0}
    engine = make_engine(context=CONTEXT)
    engine.add(request("five", prompt, logprobs=5, **params))
    engine.add(request("none", prompt, **params))
    engine.add(request("zero", prompt, logprobs=0, **params))
    engine.add(request("two", prompt, logprobs=2, **params))
    events = drain(engine)
    assert {event.logprobs for event in events["none"]} == {None}
    known = list(prompt)
    for five, zero, two in zip(events["five"], events["zero"], events["two"], strict=True):
        logprobs = log_softmax(logits_of(known))
        (token,) = five.token_ids
        (entry,) = five.logprobs
        best = sorted(range(VOCAB), key=lambda one: -logprobs[one])
        assert entry.logprob == pytest.approx(logprobs[token], abs=1e-5)
        assert best[entry.rank] == token
        assert entry.top_ids == best[:5]
        assert entry.top_logprobs == pytest.approx(logprobs[best[:5]].tolist(), abs=1e-5)
        assert (zero.logprobs[0].top_ids, zero.logprobs[0].logprob) == ([], entry.logprob)
        assert two.logprobs[0].top_ids == best[:2]
        known.append(token)
    assert events["five"][-1].finish_reason == "length"


def seen_by_row(batch):
    """{token: count} for each sampled row."""
    adjustment = batch.sampling.adjustment
    seen = [{} for _ in range(len(batch.sampling))]
    if adjustment is not None:
        for row, token, count in zip(adjustment.seen_rows, adjustment.seen_tokens, adjustment.seen_counts, strict=True):
            seen[row][int(token)] = int(count)
    return seen


def test_penalty_counts_are_kept_as_tokens_come():
    engine = make_engine(context=CONTEXT, pages=16, seqs=4)
    prompt = [4, 4, 9, 2]
    params = {"max_tokens": 25, "ignore_eos": True, "frequency_penalty": -2.0}
    engine.add(request("both", prompt, repetition_penalty=1.2, **params))
    engine.add(request("output", prompt, **params))
    engine.add(request("plain", prompt, max_tokens=25, ignore_eos=True))
    outputs = {"both": [], "output": [], "plain": []}
    while engine.has_work:
        events = engine.step()
        for event, seen in zip(events, seen_by_row(engine._runner.last), strict=True):
            output = outputs[event.request_id]
            if event.request_id == "both":
                assert seen == {token: output.count(token) for token in set(prompt + output)}
            elif event.request_id == "output":  # a prompt matters to the repetition penalty alone
                assert seen == {token: output.count(token) for token in set(output)}
            else:
                assert seen == {}
            output += event.token_ids
    assert max(outputs["output"].count(token) for token in set(outputs["output"])) > 1
    assert engine.stats().preemptions > 0


def test_sampling_columns_say_what_was_asked():
    engine = make_engine(context=CONTEXT)
    engine.add(request("a", [1], temperature=0.5, top_k=3, top_p=0.25, min_p=0.125, seed=-1, logprobs=2))
    engine.add(request("b", [1], temperature=0.5, top_k=1, seed=5))
    engine.add(request("c", [1], temperature=1.0, top_k=10**6, seed=2**64 - 1))
    engine.step()
    rows = engine._runner.last.sampling
    assert rows.temperature.tolist() == [0.5, 0.0, 1.0]
    assert rows.top_k.tolist() == [3, 1, 0]
    assert rows.top_p.tolist() == [0.25, 1.0, 1.0]
    assert rows.min_p.tolist() == [0.125, 0.0, 0.0]
    assert rows.seeds.tolist() == [2**64 - 1, 5, 2**64 - 1]
    assert rows.logprobs.tolist() == [2, -1, -1]
    assert not rows.all_greedy
    assert rows.adjustment is None


def test_stats_count_truly():
    engine = make_engine(context=CONTEXT, seqs=2, page_size=4, pages=32)
    for name in "abc":
        engine.add(request(name, [1] * 10, max_tokens=3, ignore_eos=True))
    engine.step()
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.pages_total, stats.pages_free) == (2, 1, 32, 26)
    assert (stats.prompt_tokens, stats.generation_tokens, stats.steps) == (20, 2, 1)
    drain(engine)
    stats = engine.stats()
    assert (stats.prompt_tokens, stats.generation_tokens, stats.preemptions) == (30, 9, 0)
    assert stats.requests_finished == {"stop": 0, "length": 3, "abort": 0, "error": 0}
    assert stats.steps_replayed == stats.steps // 2 > 1
    assert 0 < stats.schedule_seconds < stats.step_seconds
