"""Shared pages in the engine: what a hit computes, whose pages are found, and what is kept of outputs."""

from __future__ import annotations

import pytest

from cache_prefix.prefix import PrefixPages
from tests.engine.fake_runner import Chunks, assert_idle, collect, drain, make_engine, request, tokens_of

PAGE = 4


def ask(engine, name, prompt, **params):
    """Runs a request alone; its tokens, how many were cached, and how many tokens the runner computed for it."""
    before = sum(tokens for tokens, _, _ in engine._runner.batches)
    engine.add(request(name, prompt, ignore_eos=True, **params))
    events = drain(engine)[name]
    assert_idle(engine)
    computed = sum(tokens for tokens, _, _ in engine._runner.batches) - before
    return tokens_of(events), events[-1].num_cached_tokens, computed


@pytest.mark.parametrize(("size", "cached"), [(1, 0), (4, 0), (5, 4), (8, 4), (9, 8), (24, 20), (25, 24)])
def test_a_known_prompt_computes_its_last_page_only(size, cached):
    engine = make_engine(page_size=PAGE, cache=PrefixPages())
    prompt = list(range(size))
    first, _, computed = ask(engine, "first", prompt, max_tokens=3)
    assert computed == size + 2
    assert ask(engine, "again", prompt, max_tokens=3) == (first, cached, size - cached + 2)


@pytest.mark.parametrize(("keeps_outputs", "cached"), [(True, 20), (False, 8)])
def test_a_conversation_goes_on_from_its_outputs_only_if_they_are_kept(keeps_outputs, cached):
    engine = make_engine(page_size=PAGE, cache=PrefixPages(keeps_outputs))
    prompt = list(range(10))
    output, _, _ = ask(engine, "first", prompt, max_tokens=13)  # the last one's K and V are never computed
    assert ask(engine, "next", [*prompt, *output, 1, 2], max_tokens=1)[1] == cached
    assert engine.stats().pages_cached == 6, "the second prompt has 25 tokens"


def test_outputs_recomputed_after_a_preemption_are_no_prompt():
    engine = make_engine(page_size=PAGE, pages=12, seqs=3, context=40, cache=PrefixPages(keeps_outputs=False))
    for index in range(3):
        engine.add(request(f"r{index}", [index] * 6, max_tokens=24, ignore_eos=True))
    drain(engine)
    assert engine.stats().preemptions > 0
    assert engine.stats().pages_cached <= 3, "only the first page of each prompt is full"


def test_salts_keep_tenants_apart():
    engine = make_engine(page_size=PAGE, cache=PrefixPages())
    prompt = list(range(20))
    tokens, _, _ = ask(engine, "ours", prompt, max_tokens=2)
    engine.add(request("theirs", prompt, salt="b", max_tokens=2, ignore_eos=True))
    engine.add(request("theirs again", prompt, max_tokens=2, ignore_eos=True))
    events = drain(engine)
    assert [events[name][-1].num_cached_tokens for name in ("theirs", "theirs again")] == [0, 16]
    assert tokens_of(events["theirs"]) == tokens_of(events["theirs again"]) == tokens


def test_one_leaves_while_another_uses_its_pages():
    engine = make_engine(page_size=PAGE, pages=12, seqs=2, context=40, cache=PrefixPages())
    prompt = list(range(17))
    alone = ask(make_engine(page_size=PAGE, pages=12, context=40), "alone", prompt, max_tokens=20)[0]
    events = {}
    engine.add(request("first", prompt, max_tokens=20, ignore_eos=True))
    collect(events, engine.step())
    engine.add(request("second", prompt, max_tokens=20, ignore_eos=True))
    collect(events, engine.step())
    assert engine.stats().num_running == 2, "4 pages are shared: both fit into 12"
    assert engine.abort("first")
    engine.blocks.check()
    engine.add(request("third", list(range(20, 30)), max_tokens=30, ignore_eos=True))  # wants every page it can get
    for new in drain(engine).values():
        collect(events, new)
    assert tokens_of(events["second"]) == alone
    assert events["second"][-1].num_cached_tokens == 16
    assert_idle(engine)


# --- the second tier ----------------------------------------------------------------------------------------------------


def swapping(*, pages=12, places=100, patience=2, **shape):
    cache = PrefixPages(host_bytes=places)
    engine = make_engine(page_size=PAGE, pages=pages, context=40, cache=cache, copying=(0, patience), **shape)
    return engine, engine.blocks._policy._host._pages


@pytest.mark.parametrize("patience", [0, 3, 1000])
def test_a_prompt_that_was_given_up_comes_back_from_the_host(patience):
    engine, host = swapping(patience=patience)
    prompt = list(range(26))
    first, _, _ = ask(engine, "first", prompt, max_tokens=3)
    for index in range(3):
        ask(engine, f"other {index}", [30 + index] * 38, max_tokens=2)  # ten pages of twelve
    assert host.saved == 7 + 3 * 9, "28 tokens of the first, 39 of the others"
    assert ask(engine, "again", prompt, max_tokens=3) == (first, 24, 2 + 2)
    assert host.restored == 6
    engine.close()
    assert host.closed


def test_who_decodes_does_not_wait_for_copies():
    engine, host = swapping(pages=20, patience=10**9, seqs=4)
    prompt = list(range(26))
    for index, first in enumerate([prompt, [30] * 38, [31] * 38]):
        ask(engine, f"r{index}", first, max_tokens=2)
    engine.add(request("decodes", [7, 8], max_tokens=30, ignore_eos=True))
    engine.step()
    engine.add(request("again", prompt, max_tokens=2, ignore_eos=True))
    for _ in range(20):
        assert [event.request_id for event in engine.step()] == ["decodes"]
        engine.blocks.check()
    assert engine.stats().num_running == 2
    assert host.queue, "the copy is still under way"
    events = drain(engine)
    assert len(tokens_of(events["decodes"])) == 9, "the copy is waited for when nothing else is to be done"
    assert events["again"][-1].num_cached_tokens == 24
    assert_idle(engine)


def test_abort_while_its_pages_arrive():
    engine, _host = swapping(pages=20, patience=10**9, seqs=4)
    prompt = list(range(26))
    for index, first in enumerate([prompt, [30] * 38, [31] * 38]):
        ask(engine, f"r{index}", first, max_tokens=2)
    engine.add(request("decodes", [7, 8], max_tokens=30, ignore_eos=True))
    engine.step()
    engine.add(request("again", prompt, max_tokens=2, ignore_eos=True))
    engine.step()
    assert engine.abort("again")
    engine.blocks.check()
    engine.add(request("large", [3] * 39, max_tokens=1))  # wants the room of pages that are still being copied to
    drain(engine)
    assert_idle(engine)
    assert ask(engine, "once more", prompt, max_tokens=2)[1] == 24


def test_two_wait_for_the_same_pages():
    engine, host = swapping(pages=20, patience=10**9, seqs=4)
    prompt = list(range(26))
    alone = ask(engine, "first", prompt, max_tokens=6)[0]
    for index in range(2):
        ask(engine, f"other {index}", [30 + index] * 38, max_tokens=2)
    for name in "ab":
        engine.add(request(name, prompt, max_tokens=6, ignore_eos=True))
    events = drain(engine)
    assert host.restored <= 6, "they are copied once"
    for name in "ab":
        assert tokens_of(events[name]) == alone
        assert events[name][-1].num_cached_tokens == 24


def test_the_longest_unused_place_is_taken_again():
    engine, _host = swapping(places=9, patience=0)
    for index in range(3):
        ask(engine, f"r{index}", [20 + index] * 13, max_tokens=1)  # three pages each
    for index in range(3):
        ask(engine, f"other {index}", [30 + index] * 38, max_tokens=2)
    engine.blocks._policy.reclaim(12)
    assert len(engine.blocks._policy._host._places) == 9
    assert ask(engine, "again", [32] * 38, max_tokens=1)[1] == 36
    assert ask(engine, "first again", [20] * 13, max_tokens=1)[1] == 0


def test_reset_forgets_the_host_too():
    engine, _host = swapping()
    prompt = list(range(26))
    ask(engine, "first", prompt, max_tokens=2)
    engine.blocks._policy.reset()
    engine.blocks.check()
    assert engine.stats().pages_free == 12
    assert ask(engine, "again", prompt, max_tokens=2)[1] == 0


# --- requests that wait --------------------------------------------------------------------------------------------------


class OneAtATime(Chunks):
    """Only who is first computes; those behind are asked in every step, and granted nothing."""

    keeps_order = False

    def grant(self, remaining, budget):
        return remaining if not budget.num_decodes else 0


class Counting(PrefixPages):
    looks = digests = 0

    def find(self, tokens, salt, earlier=None):
        self.looks += 1
        return super().find(tokens, salt, earlier)

    def _digest(self, before, tokens):
        self.digests += 1
        return super()._digest(before, tokens)


def test_who_waits_is_hashed_once_and_looked_for_when_pages_have_changed_hands():
    cache = Counting()
    engine = make_engine(page_size=16, pages=100, seqs=40, context=128, cache=cache, policy=OneAtATime())
    prompt = [3 * number % 41 for number in range(40)]
    ask(engine, "known", prompt, max_tokens=1)
    engine.add(request("runs", [1] * 17, max_tokens=60, ignore_eos=True))
    engine.step()
    for index in range(32):
        engine.add(request(f"waits {index}", [*prompt[:39], index], max_tokens=1))
    cache.looks = cache.digests = 0
    idle, counts = list(cache._idle), engine.blocks.pool.counts.copy()
    for _ in range(50):
        engine.step()
    assert engine.stats().num_waiting == 32
    assert cache.looks == 32 * 4, "at first, and after each of three pages that the running one has filled"
    assert cache.digests == 32 * 2 + 3, "two pages of each prompt, and the three"
    assert list(cache._idle) == idle
    assert (engine.blocks.pool.counts[idle] == counts[idle]).all()
    events = drain(engine)
    assert {events[f"waits {index}"][0].num_cached_tokens for index in range(32)} == {32}


def test_who_does_not_fit_has_nothing_copied_and_keeps_nothing_young():
    engine, host = swapping(pages=13, patience=0, seqs=4)
    prompt = list(range(26))
    ask(engine, "first", prompt, max_tokens=2)
    ask(engine, "other", [30] * 38, max_tokens=2)  # the first one's pages are given up, but for a few
    engine.add(request("runs", [31] * 33, max_tokens=7, ignore_eos=True))
    engine.step()
    engine.add(request("waits", prompt, max_tokens=2, ignore_eos=True))
    policy = engine.blocks._policy
    idle = list(policy._idle)
    for _ in range(3):
        engine.step()
        engine.blocks.check()
    assert engine.stats().num_waiting == 1
    assert (host.restored, list(policy._idle)) == (0, idle)
    assert drain(engine)["waits"][-1].num_cached_tokens == 24
    assert host.restored > 0


def test_who_is_granted_nothing_has_nothing_copied():
    engine, host = swapping(pages=20, patience=0, seqs=4, policy=OneAtATime())
    prompt = list(range(26))
    for index, one in enumerate([prompt, [30] * 38, [31] * 38]):
        ask(engine, f"r{index}", one, max_tokens=2)
    engine.add(request("runs", [7, 8], max_tokens=6, ignore_eos=True))
    engine.step()
    engine.add(request("waits", prompt, max_tokens=2, ignore_eos=True))
    for _ in range(4):
        engine.step()
    assert (engine.stats().num_waiting, host.restored) == (1, 0)
    assert drain(engine)["waits"][-1].num_cached_tokens == 24
    assert host.restored > 0


# --- requests that come together ------------------------------------------------------------------------------------------

ALIKE = [3 * number % 41 for number in range(26)]


def computed(engine):
    return sum(tokens for tokens, _, _ in engine._runner.batches)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("budget", [256, 10])
def test_what_several_share_is_computed_once(ahead, budget):
    alone = ask(make_engine(page_size=PAGE), "alone", ALIKE, max_tokens=4)[0]
    engine = make_engine(page_size=PAGE, cache=PrefixPages(), ahead=ahead, budget=budget)
    for name in "abcd":
        engine.add(request(name, ALIKE, max_tokens=4, ignore_eos=True))
    engine.add(request("half", ALIKE[:13] + [40] * 9, max_tokens=1))
    engine.add(request("other", [9] * 5, max_tokens=1))
    events = drain(engine)
    assert [tokens_of(events[name]) for name in "abcd"] == [alone] * 4
    assert [events[name][-1].num_cached_tokens for name in (*"abcd", "half", "other")] == [0, 24, 24, 24, 12, 0]
    assert_idle(engine)


@pytest.mark.parametrize("ends", ["abort", "fail", "preempt"])
@pytest.mark.parametrize("ahead", [False, True])
def test_where_the_one_that_computes_ends_the_next_one_does_it(ends, ahead):
    engine = make_engine(page_size=PAGE, cache=PrefixPages(), budget=10, ahead=ahead)
    for name in "abc":
        engine.add(request(name, ALIKE, max_tokens=2, ignore_eos=True))
    events = {}
    collect(events, engine.step())
    assert (engine.stats().num_running, engine.stats().num_waiting) == (1, 2)
    if ends == "abort":
        engine.abort("a")
    elif ends == "fail":
        engine._runner.fail_on = ALIKE[14]
        while not events:
            collect(events, engine.step())
        engine._runner.fail_on = None
    else:
        engine._land()
        engine._scheduler._preempt(engine._sequences["a"])
    for more in drain(engine).values():
        for event in more:
            collect(events, [event])
    left = "abc" if ends == "preempt" else "bc"
    assert [events[name][-1].finish_reason for name in left] == ["length"] * len(left)
    assert events["c"][-1].num_cached_tokens == 24
    assert_idle(engine)


def test_nobody_waits_for_pages_that_cannot_be_shared():
    engine = make_engine(page_size=PAGE)
    for name in "abc":
        engine.add(request(name, ALIKE, max_tokens=2, ignore_eos=True))
    engine.step()
    assert engine.stats().num_running == 3
    drain(engine)
