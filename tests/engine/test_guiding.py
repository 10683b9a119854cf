"""Grammars that take their time, or cannot be had: nobody waits for them but who brought them."""

import logging
from threading import Event

import numpy as np
import pytest

from core.engine import batch, guiding
from core.errors import RequestError
from core.interfaces.grammar import GrammarBackend, Matcher
from core.interfaces.request import Grammar
from tests.engine.fake_runner import Prophet, assert_idle, collect, drain, generate, make_engine, request, tokens_of

FORM = [11, 12, 13, 14, 15, 16]
DEADLINE = 20  # seconds, for a test that has failed already


class Line(Matcher):
    """Allows ``FORM``, one token after the other; what comes at ``slow_at`` is known when ``known`` is set."""

    def __init__(self, known, slow_at):
        self.known, self.slow_at, self.accepted = known, slow_at, 0

    def allowed(self):
        if self.accepted == self.slow_at:
            assert self.known.wait(DEADLINE)
        return np.array([1 << FORM[self.accepted], 0], np.uint32)

    def accept(self, token):
        assert token == FORM[self.accepted]
        self.accepted += 1
        self.done = self.accepted == len(FORM)


class Slow(GrammarBackend):
    """The grammar "prepare" is made when ``known`` is set; of "7" the mask behind seven tokens is."""

    def __init__(self):
        self.known, self.asked = Event(), []

    def attach(self, vocabulary):
        pass

    def matcher(self, grammar):
        self.asked.append(grammar.text)
        if grammar.text == "refuse":
            raise RequestError("the grammar cannot be used: no", param="grammar")
        if grammar.text == "break":
            raise KeyError("no such rule")
        if grammar.text == "prepare":
            assert self.known.wait(DEADLINE)
        return Line(self.known, int(grammar.text) if grammar.text.isdigit() else -1)


@pytest.fixture
def slow():
    backend = Slow()
    yield backend
    backend.known.set()  # the engine's threads end


def guided(name, text, **params):
    return request(name, [5, 6, 7], max_tokens=20, grammar=Grammar("regex", text), **params)


def until(engine, events, condition):
    for _ in range(5000):
        collect(events, engine.step())
        engine.blocks.check()
        if condition():
            return
    raise AssertionError("it did not come to pass")


@pytest.mark.parametrize("ahead", [False, True])
def test_a_request_finishes_while_anothers_grammar_is_prepared(slow, ahead):
    engine, events = make_engine(grammars=slow, ahead=ahead), {}
    engine.add(guided("slow", "prepare"))
    engine.add(request("beside", [1, 2], max_tokens=30, ignore_eos=True))
    assert engine.stats().num_waiting == 2
    until(engine, events, lambda: engine.stats().requests_finished["length"])
    assert (list(events), slow.asked, engine.stats().num_waiting) == (["beside"], ["prepare"], 1)
    late = request("later", [3], max_tokens=2, ignore_eos=True)  # and one that comes while nothing else is to do
    engine.step()
    engine.add(late)
    until(engine, events, lambda: engine.stats().requests_finished["length"] == 2)
    slow.known.set()
    for name, more in drain(engine).items():
        collect(events, more)
        assert name == "slow"
    assert (tokens_of(events["slow"]), events["slow"][-1].finish_reason) == (FORM, "stop")
    assert tokens_of(events["beside"]) == generate([1, 2], request("", [1], max_tokens=30, ignore_eos=True).params, 128)[0]
    assert_idle(engine)
    engine.close()


@pytest.mark.parametrize(
    ("text", "message", "status"),
    [("refuse", "the grammar cannot be used: no", 400), ("break", "an internal error; the server's log has the cause", 500)],
)
def test_a_grammar_that_cannot_be_had_refuses_its_own_request_alone(slow, caplog, text, message, status):
    engine, events, answers = make_engine(grammars=slow), {}, []
    engine.add(guided("bad", text))
    engine.add(guided("good", ""))
    with caplog.at_level(logging.CRITICAL, logger="dovetail.engine"):
        until(engine, events, lambda: answers.extend(engine.answers()) or not engine.has_work)
    assert [(each.request_id, each.error.message, each.error.status) for each in answers] == [("bad", message, status)]
    assert (list(events), tokens_of(events["good"])) == (["good"], FORM)
    assert engine.answers() == []
    engine.add(guided("bad", ""))  # its id is free
    assert tokens_of(drain(engine)["bad"]) == FORM
    engine.close()


def test_who_leaves_while_a_grammar_is_prepared_is_gone_at_once(slow):
    engine = make_engine(grammars=slow, waiting=1, seqs=1)
    engine.add(guided("first", "prepare"))
    engine.add(guided("second", "never"))
    with pytest.raises(RequestError, match="1 requests wait already: try again later"):
        engine.add(request("third", [1]))
    assert engine.abort("second")
    assert engine.abort("first")
    events = drain(engine)
    assert {name: each[-1].finish_reason for name, each in events.items()} == {"first": "abort", "second": "abort"}
    slow.known.set()
    engine.close()
    assert "never" not in slow.asked


@pytest.mark.parametrize("slow_at", [0, 1, 4])
@pytest.mark.parametrize("how", ["plain", "ahead", "drafts"])
def test_a_row_whose_mask_is_late_sits_out_and_gains_what_it_would_have(slow, monkeypatch, slow_at, how):
    monkeypatch.setattr(batch, "PATIENCE", 0.0)
    drafts = Prophet() if how == "drafts" else None
    engine, events = make_engine(grammars=slow, ahead=how == "ahead", drafts=drafts), {}
    beside = request("beside", [1, 2], max_tokens=60, ignore_eos=True)
    engine.add(guided("slow", str(slow_at), logprobs=1))
    engine.add(beside)
    until(engine, events, lambda: engine.stats().requests_finished["length"])
    assert tokens_of(events["beside"]) == generate([1, 2], beside.params, 128)[0]
    assert tokens_of(events.get("slow", [])) == FORM[:slow_at]
    assert engine.step() == []
    slow.known.set()
    for more in drain(engine).values():
        collect(events, more)
    assert (tokens_of(events["slow"]), events["slow"][-1].finish_reason) == (FORM, "stop")
    assert sum(len(event.logprobs) for event in events["slow"]) == len(FORM)
    assert engine.stats().generation_tokens == 60 + len(FORM)
    assert_idle(engine)
    engine.close()


def test_a_late_mask_may_be_waited_for_elsewhere(slow, monkeypatch):
    """Preempted, or aborted, while it is held."""
    monkeypatch.setattr(batch, "PATIENCE", 0.0)
    engine, events = make_engine(grammars=slow, pages=12, seqs=3), {}
    engine.add(request("beside", [1, 2], max_tokens=44, ignore_eos=True))
    engine.add(guided("slow", "1"))
    engine.add(guided("leaves", "1"))
    until(engine, events, lambda: len(events.get("slow", [])) == 1 and len(events.get("leaves", [])) == 1)
    assert engine.abort("leaves")
    until(engine, events, lambda: engine.stats().requests_finished["length"])
    assert engine.stats().preemptions
    slow.known.set()
    for more in drain(engine).values():
        collect(events, more)
    assert tokens_of(events["slow"]) == FORM
    assert_idle(engine)
    engine.close()


@pytest.mark.parametrize(
    ("mask", "gave"),
    [(np.ones(1, np.uint32), "uint32[1]"), (np.ones(2, np.int64), "int64[2]"), ([1, 2], "list")],
    ids=["short", "type", "list"],
)
def test_a_mask_that_is_none_ends_its_request_and_names_its_matcher(slow, monkeypatch, caplog, mask, gave):
    allowed = Line.allowed
    monkeypatch.setattr(Line, "allowed", lambda line: mask if line.accepted == 2 else allowed(line))
    engine = make_engine(grammars=slow)
    engine.add(guided("wrong", ""))
    last = drain(engine)["wrong"][-1]
    assert (last.finish_reason, last.error) == ("error", "the grammar broke; the server's log has the cause")
    assert f"allowed() of the grammar's matcher {__name__}.Line gave {gave} instead of uint32[2]" in caplog.text
    assert_idle(engine)
    engine.close()


def test_a_mask_that_takes_too_long_ends_its_request_alone(slow, monkeypatch):
    monkeypatch.setattr(batch, "PATIENCE", 0.0)
    monkeypatch.setattr(guiding, "LONGEST", 0.01)
    engine = make_engine(grammars=slow)
    engine.add(guided("slow", "2"))
    engine.add(request("beside", [1, 2], max_tokens=60, ignore_eos=True))
    events = drain(engine)
    last = events["slow"][-1]
    assert (last.finish_reason, last.error) == ("error", "the grammar took more than 0.01 s to say what may come next")
    assert tokens_of(events["slow"][:-1]) == FORM[:2]
    assert len(tokens_of(events["beside"])) == 60
    assert_idle(engine)
    slow.known.set()
    engine.close()
