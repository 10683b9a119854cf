"""What a scheduling policy is told and asked, and in which order."""

from __future__ import annotations

from dataclasses import replace

from cache_prefix.prefix import PrefixPages
from prefill_chunked.chunked import ChunkedPrefill
from tests.engine.fake_runner import Chunks, drain, make_engine, request


class Asked(Chunks):
    """Grants what a list says, in turn, and notes each question."""

    def __init__(self, *grants, keeps_order=True):
        self.grants = list(grants)
        self.keeps_order = keeps_order
        self.questions = []

    def grant(self, remaining, budget):
        assert budget.left > 0
        self.questions.append((remaining, replace(budget)))
        return self.grants.pop(0) if self.grants else super().grant(remaining, budget)

    def taken(self):
        """(remaining, left, decodes, prefills, partial, behind) of the questions since the last call."""
        asked, self.questions = self.questions, []
        return [
            (remaining, b.left, b.num_decodes, b.num_prefills, b.num_partial, b.num_behind)
            for remaining, b in asked
            if b.total == 20
        ]


def engine_with(policy, **more):
    return make_engine(budget=20, policy=policy, context=64, **more)


def test_the_budget_it_sees_shrinks_as_the_step_fills():
    policy = Asked(10, 4, 3)
    engine = engine_with(policy, seqs=4)
    for name, size in (("a", 10), ("b", 9), ("c", 8), ("d", 7), ("e", 6)):
        engine.add(request(name, [1] * size, max_tokens=20, ignore_eos=True))
    engine.step()
    assert policy.taken() == [(10, 20, 0, 0, 0, 3), (9, 10, 0, 1, 0, 2), (8, 6, 0, 2, 1, 1), (7, 3, 0, 3, 2, 0)]
    engine.step()  # a decodes; b, c and d are begun
    assert policy.taken() == [(5, 19, 1, 0, 0, 2), (5, 14, 1, 1, 0, 1), (4, 9, 1, 2, 0, 0)]


def test_one_that_is_granted_nothing_holds_back_those_behind_it():
    policy = Asked(5, 5, 5, 0)
    engine = engine_with(policy)
    for name in "abcd":
        engine.add(request(name, [1] * 9, max_tokens=1))
    engine.step()
    policy.taken()
    policy.grants = [4, 0]
    engine.step()  # a, b and c are begun
    assert [remaining for remaining, *_ in policy.taken()] == [4, 4]
    policy.grants = [4, 4, 0]
    engine.step()  # now b and c; d waits
    assert [remaining for remaining, *_ in policy.taken()] == [4, 4, 9]


def test_unless_the_policy_lets_them_overtake():
    policy = Asked(0, 9, 0, 9, keeps_order=False)
    engine = engine_with(policy)
    for name in "abcde":
        engine.add(request(name, [1] * 9, max_tokens=1))
    assert [event.request_id for event in engine.step()] == ["b", "d"]
    assert [remaining for remaining, *_ in policy.taken()] == [9, 9, 9, 9, 9]
    assert engine.stats().num_running == 1  # e has what was left
    policy.grants = [0]
    assert [event.request_id for event in engine.step()] == ["a", "c"]


def test_a_policy_that_refuses_does_not_lose_the_pages_that_were_found():
    policy = Asked(keeps_order=False)
    engine = engine_with(policy, cache=PrefixPages())
    engine.add(request("first", [1] * 17, max_tokens=1))
    drain(engine)
    policy.grants = [3, 0]
    engine.add(request("other", [2] * 9, max_tokens=1))
    engine.add(request("again", [1] * 17, max_tokens=1))
    engine.step()
    engine.blocks.check()
    assert engine.stats().num_waiting == 1
    assert drain(engine)["again"][0].num_cached_tokens == 16


def test_begun_prompts_go_on_by_priority_and_before_waiting_ones():
    policy = Asked(5, 5)
    engine = engine_with(policy)
    engine.add(request("late", [1] * 30, priority=3, max_tokens=1))
    engine.step()
    policy.grants = [5, 10]
    engine.add(request("early", [1] * 29, priority=1, max_tokens=1))
    engine.step()
    engine.add(request("waits", [1] * 28, priority=0, max_tokens=1))
    policy.taken()
    policy.grants = [5, 5]
    engine.step()
    assert [remaining for remaining, *_ in policy.taken()] == [19, 20, 28]


def test_a_long_prompt_goes_on_while_short_ones_pass_the_next_long_one():
    engine = engine_with(ChunkedPrefill(max_partial=2, max_long=1, long_threshold=15))
    engine.add(request("long", [1] * 50, max_tokens=1))
    engine.add(request("second", [2] * 50, max_tokens=1))
    engine.add(request("short", [3] * 5, max_tokens=1))
    assert [event.request_id for event in engine.step()] == ["short"]
    ended = list(drain(engine))
    assert ended == ["long", "second"]


def test_nobody_is_asked_when_the_step_is_full():
    policy = Asked(5, 5, 5)
    engine = engine_with(policy)
    for name in "abcd":
        engine.add(request(name, [1] * 30, max_tokens=1))
    engine.step()
    policy.taken()
    policy.grants = [20]
    engine.step()  # all four are begun
    assert len(policy.taken()) == 1
    drain(engine)


def test_decoding_rows_never_exceed_the_budget():
    engine = make_engine(budget=3, policy=Asked(1, 1, 1, 0, 0, 0, 1, 1, 1, keeps_order=False), context=64)
    for name in "abcdefgh":
        engine.add(request(name, [1] * 3, max_tokens=9, ignore_eos=True))
    assert set(drain(engine)) == set("abcdefgh")  # the runner checks the size of every step
