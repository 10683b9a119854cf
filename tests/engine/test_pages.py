"""Any interleaving of arrivals, aborts and steps: no page lost, none owned twice, nobody stuck, the right tokens."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cache_prefix.prefix import PrefixPages
from core.interfaces.cache import Found, Hit
from kv_blocks.policies import GlobalBlocks, PartitionedBlocks
from plain.private import PrivatePages
from prefill_chunked.chunked import ChunkedPrefill
from tests.engine.fake_runner import (
    VOCAB,
    Chunks,
    Prophet,
    assert_idle,
    collect,
    drain,
    generate,
    make_engine,
    request,
    tokens_of,
)

CONTEXT = 32


class AnyOrder(RuleBasedStateMachine):
    @initialize(
        seqs=st.integers(1, 6),
        page_size=st.sampled_from([1, 3, 4, 16, 32]),
        spare=st.integers(0, 12),
        budget=st.sampled_from([1, 2, 7, 32, 100]),
        cache=st.sampled_from([PrivatePages, PrefixPages, *(partial(PrefixPages, host_bytes=pages) for pages in (1, 6, 60))]),
        patience=st.sampled_from([0, 1, 20]),
        blocks=st.sampled_from([(None, 0), (1.0, 0), (1.0, 2), (0.75, 0), (0.75, 1), (0.5, 2)]),
        drafts=st.sampled_from([None, Prophet, lambda: Prophet(most=9, slip=2), lambda: Prophet(most_rows=2, slip=100)]),
        policy=st.sampled_from([Chunks, lambda: ChunkedPrefill(2, 1, 5), ChunkedPrefill]),
        ahead=st.booleans(),
    )
    def start(self, seqs, page_size, spare, budget, cache, patience, blocks, drafts, policy, ahead):
        ratio, ahead = blocks
        pages = -(-CONTEXT // page_size)
        self.engine = make_engine(
            seqs=seqs,
            context=CONTEXT,
            page_size=page_size,
            pages=(pages if ratio is None else -int(-pages // ratio)) + spare,
            budget=budget,
            policy=policy(),
            cache=cache(),
            blocks=GlobalBlocks() if ratio is None else PartitionedBlocks(ratio, ahead),
            drafts=drafts and drafts(),
            copying=(seqs, patience),
            ahead=ahead,
        )
        self.made, self.events, self.aborted = {}, {}, set()

    @rule(
        size=st.integers(1, CONTEXT - 1),
        kind=st.integers(0, 2),
        most=st.integers(1, CONTEXT),
        priority=st.integers(-1, 1),
        temperature=st.sampled_from([0.0, 1.0]),
        penalty=st.sampled_from([0.0, 0.5]),
    )
    def add(self, size, kind, most, priority, temperature, penalty):
        prompt = [(kind * 5 + index * index) % VOCAB for index in range(size)]
        name = f"r{len(self.made)}"
        self.made[name] = request(
            name,
            prompt,
            priority=priority,
            max_tokens=min(most, CONTEXT - size),
            temperature=temperature,
            seed=len(self.made),
            frequency_penalty=penalty,
        )
        self.engine.add(self.made[name])

    @rule(number=st.integers(1, 8))
    def step(self, number):
        for _ in range(number):
            collect(self.events, self.engine.step())
            self.engine.blocks.check()

    @precondition(lambda self: self.made)
    @rule(data=st.data())
    def abort(self, data):
        name = data.draw(st.sampled_from(sorted(self.made)))
        if self.engine.abort(name):
            self.aborted.add(name)

    @invariant()
    def every_page_is_accounted_for(self):
        if hasattr(self, "engine"):
            self.engine.blocks.check()

    def teardown(self):
        if not hasattr(self, "engine"):
            return
        for new in drain(self.engine).values():
            collect(self.events, new)
        assert set(self.events) == set(self.made)
        for name, one in self.made.items():
            tokens, reason, _ = generate(one.prompt_token_ids, one.params, CONTEXT)
            mine, last = tokens_of(self.events[name]), self.events[name][-1].finish_reason
            if name in self.aborted:
                assert (mine, last) == (tokens[: len(mine)], "abort")
            else:
                assert (mine, last) == (tokens, reason)
        assert_idle(self.engine)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_page_is_held_back_for_every_row_that_may_still_grow():
    engine = make_engine(context=CONTEXT, page_size=4, pages=8, seqs=4)
    engine.add(request("grows", [1] * 8, max_tokens=16, ignore_eos=True))  # 2 pages now, 6 in the end
    engine.step()
    engine.add(request("newcomer", [2] * 17, max_tokens=1))  # 5 pages: all that are free by then, none in reserve
    engine.step()
    assert (engine.stats().num_running, engine.stats().num_waiting) == (1, 1)
    drain(engine)
    assert engine.stats().preemptions == 0


def test_a_row_that_will_not_grow_holds_nothing_back():
    engine = make_engine(context=CONTEXT, page_size=4, pages=8, seqs=4)
    engine.add(request("stays", [1] * 8, max_tokens=5, ignore_eos=True))  # 3 pages from the second step on, and never more
    engine.step()
    engine.add(request("newcomer", [2] * 17, max_tokens=4, ignore_eos=True))  # the 5 others
    engine.step()
    assert (engine.stats().num_running, engine.stats().num_waiting) == (2, 0)
    drain(engine)


def test_one_that_did_not_fit_is_admitted_as_soon_as_it_does():
    engine = make_engine(context=CONTEXT, page_size=4, pages=10, seqs=4)
    engine.add(request("short", [1] * 8, max_tokens=3, ignore_eos=True))
    engine.add(request("long", [2] * 8, max_tokens=20, ignore_eos=True))
    engine.step()
    engine.add(request("waits", [3] * 20, max_tokens=2, ignore_eos=True))
    started = {}
    for number in range(1, 30):
        for event in engine.step():
            started.setdefault(event.request_id, number)
    assert started == {"short": 1, "long": 1, "waits": 3}


@pytest.mark.parametrize("tokens", [3, 8, 12], ids=["part of a page", "all of the prompt", "more than the prompt"])
def test_what_is_not_whole_pages_with_a_token_left_is_refused(tokens):
    class Wrong(PrivatePages):
        def find(self, asked, salt, earlier=None):
            return Found(tokens)

    engine = make_engine(context=CONTEXT, page_size=4, cache=Wrong())
    engine.add(request("r", [1] * 8))
    with pytest.raises(RuntimeError, match=rf"Wrong found {tokens} of 8 .* it finds whole pages and leaves a token to compute"):
        engine.step()


def test_other_pages_than_were_found_are_refused():
    class Wrong(PrivatePages):
        def find(self, asked, salt, earlier=None):
            return Found(4)

        def take(self, found):
            return Hit(self._pool.take(2))

    engine = make_engine(context=CONTEXT, page_size=4, cache=Wrong())
    engine.add(request("r", [1] * 8))
    with pytest.raises(RuntimeError, match="cache policy Wrong found 4 tokens and gave 2 pages of 4 for them"):
        engine.step()


def test_check_finds_a_page_owned_twice():
    engine = make_engine(context=CONTEXT, page_size=4)
    for name in "ab":
        engine.add(request(name, [1] * 8, max_tokens=4))
    engine.step()
    engine._rows.pages[0, 0] = engine._rows.pages[1, 0]
    with pytest.raises(RuntimeError, match="have more owners than they count"):
        engine.blocks.check()


def test_check_finds_a_damaged_table():
    engine = make_engine(context=CONTEXT, page_size=4)
    engine.add(request("a", [1] * 8, max_tokens=4))
    engine.step()
    engine._rows.pages[0, -1] = 3
    with pytest.raises(RuntimeError, match="the page table of row 0 is damaged"):
        engine.blocks.check()


def test_filled_pages_are_reported_once_each_with_their_tokens():
    told = []

    class Listens(PrivatePages):
        def filled(self, tokens, pages, first, salt):
            told.append((tokens.tolist(), pages.tolist(), first, salt))

    engine = make_engine(context=CONTEXT, page_size=4, budget=10, cache=Listens(), policy=Chunks())
    prompt = list(range(14))
    engine.add(request("r", prompt, max_tokens=8, ignore_eos=True, salt="s"))
    output = tokens_of(drain(engine)["r"])
    known = prompt + output
    assert [(len(tokens), first, salt) for tokens, _, first, salt in told] == [
        (8, 0, "s"),
        (12, 2, "s"),
        (16, 3, "s"),
        (20, 4, "s"),
    ]
    for tokens, pages, _, _ in told:
        assert tokens == known[: len(tokens)]
        assert len(set(pages)) == len(pages) == len(tokens) // 4
    assert np.array_equal(told[-1][1][:2], told[0][1])
