"""Drafts: the same tokens in fewer steps, and never a page, a place or a token too many."""

import pytest

from tests.engine.fake_runner import Prophet, assert_idle, collect, drain, generate, make_engine, request, tokens_of

PROMPT = [3, 1, 4, 1, 5]


def run(drafts, *requests, **options):
    engine = make_engine(drafts=drafts, context=128, page_size=16, **options)
    for each in requests:
        engine.add(each)
    events = drain(engine)
    assert_idle(engine)
    return engine, events


def test_right_guesses_save_steps():
    long = request("r", PROMPT, max_tokens=41, ignore_eos=True)
    plain, expected = run(None, long)
    engine, events = run(Prophet(most=4, slip=1000), long)
    assert tokens_of(events["r"]) == tokens_of(expected["r"])
    assert plain.stats().steps == 41
    assert engine.stats().steps == 11  # the prompt's, eight of five tokens, and two cut short at the end of a page
    assert engine.stats().generation_tokens == 41
    assert engine.stats().draft_tokens == engine.stats().accepted_draft_tokens == 41 - 11


def test_a_wrong_guess_costs_its_computing_and_nothing_else():
    drafts = Prophet(most=4, slip=1)
    engine, events = run(drafts, request("r", PROMPT, max_tokens=20, ignore_eos=True))
    assert tokens_of(events["r"]) == generate(PROMPT, request("r", PROMPT, max_tokens=20, ignore_eos=True).params, 128)[0]
    assert engine.stats().steps == 20
    assert engine.stats().accepted_draft_tokens == 0
    assert engine.stats().draft_tokens > 50
    assert {accepted for _, accepted in drafts.seen} == {0}


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.5])
def test_sampled_tokens_are_those_of_their_places(temperature):
    params = {"max_tokens": 60, "temperature": temperature, "seed": 11, "top_k": 5, "logprobs": 3, "ignore_eos": True}
    _, expected = run(None, request("r", PROMPT, **params))
    _, events = run(Prophet(slip=4), request("r", PROMPT, **params))
    assert tokens_of(events["r"]) == tokens_of(expected["r"])
    of = [[entry for event in found["r"] for entry in event.logprobs] for found in (expected, events)]
    assert of[0] == of[1]


def test_what_follows_a_stop_is_never_told():
    stop = generate(PROMPT, request("r", PROMPT, max_tokens=20, ignore_eos=True).params, 128)[0][12]
    stopping = request("r", PROMPT, stop_token_ids=[stop], ignore_eos=True)
    tokens, _, _ = generate(PROMPT, stopping.params, 128)
    engine, events = run(Prophet(most=8, slip=1000), stopping)
    assert tokens_of(events["r"]) == tokens
    assert (events["r"][-1].finish_reason, events["r"][-1].stop_token) == ("stop", stop)
    assert engine.stats().generation_tokens == len(tokens)


def test_who_is_never_drafted_for():
    drafts = Prophet()
    run(
        drafts,
        request("penalized", PROMPT, max_tokens=9, ignore_eos=True, presence_penalty=0.5),
        request("may not stop yet", PROMPT, max_tokens=8, min_tokens=8),
        request("two tokens", PROMPT, max_tokens=2, ignore_eos=True),
        request("drafted", PROMPT, max_tokens=9, ignore_eos=True),
    )
    assert set(drafts.asked) == {"drafted"}
    assert sorted(drafts.forgotten) == ["drafted", "may not stop yet", "penalized", "two tokens"]


def test_nobody_is_drafted_for_in_a_crowd():
    drafts = Prophet(most_rows=2)
    engine = make_engine(drafts=drafts, context=128, page_size=16)
    for number in range(3):
        engine.add(request(f"r{number}", PROMPT, max_tokens=8 + 20 * (number == 2), ignore_eos=True))
    events = {}
    while engine.stats().requests_finished["length"] == 0:
        collect(events, engine.step())
    assert drafts.asked == []
    drain(engine)
    assert set(drafts.asked) == {"r2"}


def test_drafts_take_what_the_budget_leaves():
    drafts = Prophet(most=4, slip=1000)
    engine, _ = run(drafts, *(request(f"r{n}", PROMPT, max_tokens=9, ignore_eos=True) for n in range(3)), budget=6)
    assert max(tokens for tokens, _, _ in engine._runner.batches) == 6
    assert engine.stats().accepted_draft_tokens > 0


def test_a_proposer_that_gives_more_than_it_was_asked_for_ends_the_engine():
    class Greedy(Prophet):
        def propose(self, request_id, tokens, most):
            return super().propose(request_id, tokens, most + 1)

    with pytest.raises(RuntimeError, match=r"draft proposer Greedy gave 5 tokens, 4 were asked for"):
        run(Greedy(), request("r", PROMPT, max_tokens=20, ignore_eos=True))
