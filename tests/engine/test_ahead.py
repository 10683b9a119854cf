"""Steps that are launched before the tokens of the one before are known. ``test_pages`` has every interleaving of them."""

import pytest

from core.compose import compose
from core.compose.build import build_engine
from core.errors import EngineDeadError
from tests.engine.fake_runner import EOS, assert_idle, collect, drain, generate, make_engine, request, tokens_of

PLAIN = ["--torch-kernels", "reference", "--threads", "1"]


def ahead(**settings):
    return make_engine(ahead=True, **settings)


def expected(one):
    return generate(one.prompt_token_ids, one.params, 128)[:2]


def told(events):
    return tokens_of(events), events[-1].finish_reason


def collect_all(events, later):
    for new in later.values():
        collect(events, new)


def that_ends_early():
    """A request that meets the end token before its limit."""
    for number in range(200):
        one = request(f"ends{number}", [number % 40, 3, number % 7], max_tokens=40)
        tokens, reason = expected(one)
        if reason == "stop" and len(tokens) > 3:
            return one
    raise AssertionError("nobody ends early")


def test_the_next_step_is_launched_before_the_tokens_are_told():
    engine = ahead()
    engine.add(request("a", [1, 2, 3], max_tokens=3, ignore_eos=True))
    assert engine.step() == []  # the prompt
    assert (engine.step()[0].token_ids, len(engine._runner.batches)) == (expected(request("a", [1, 2, 3]))[0][:1], 2)
    assert engine._runner.unread == 1
    events = {}
    collect(events, engine.step())
    assert len(engine._runner.batches) == 3  # that many tokens, that many steps: who reaches its limit takes part no more
    collect(events, engine.step())
    assert events["a"][-1].finish_reason == "length"
    assert len(engine._runner.batches) == 3
    assert not engine.has_work


def test_a_token_computed_for_one_that_had_ended_is_dropped():
    engine, ends = ahead(), that_ends_early()
    stays = request("stays", [4, 5, 6], max_tokens=60, ignore_eos=True)
    engine.add(ends)
    engine.add(stays)
    events = drain(engine)
    assert told(events[ends.request_id]) == expected(ends)
    assert tokens_of(events[ends.request_id])[-1] == EOS
    assert told(events["stays"]) == expected(stays)
    assert engine.stats().generation_tokens == len(expected(ends)[0]) + 60
    assert_idle(engine)


def test_a_row_may_be_anothers_when_its_last_token_comes():
    engine = ahead(seqs=1)
    first, second = (request(name, [7, 8, number], max_tokens=9, ignore_eos=True) for number, name in enumerate("ab"))
    engine.add(first)
    events = {}
    for _ in range(3):
        collect(events, engine.step())
    assert engine.abort("a")
    engine.add(second)
    collect_all(events, drain(engine))
    assert told(events["a"]) == (expected(first)[0][:2], "abort")
    assert told(events["b"]) == expected(second)


@pytest.mark.parametrize("params", [{"presence_penalty": 0.5}, {"repetition_penalty": 1.3}], ids=str)
def test_who_is_penalized_is_prepared_when_every_token_is_known(params):
    engine = ahead()
    one = request("p", [1, 2, 3], max_tokens=6, ignore_eos=True, **params)
    engine.add(one)
    assert told(drain(engine)["p"]) == expected(one)


def test_bans_depend_on_the_length_alone_and_hold_nothing_up():
    engine = ahead()
    one = request("m", [1, 2, 3], max_tokens=12, min_tokens=8)
    engine.add(one)
    events = {}
    for _ in range(2):
        collect(events, engine.step())
    assert engine._runner.unread == 1
    collect_all(events, drain(engine))
    assert told(events["m"]) == expected(one)


def test_a_step_that_fails_at_its_launch_ends_those_in_it_after_what_they_had_gained():
    engine = ahead()
    fails = request("fails", [1, 2, 3], max_tokens=9, ignore_eos=True)
    other = request("other", [30, 20], max_tokens=9, ignore_eos=True)
    tokens = expected(fails)[0]
    engine._runner.fail_on = tokens[2]
    assert tokens[2] not in (1, 2, 3, *tokens[:2])
    engine.add(fails)
    events = {}
    for _ in range(4):
        collect(events, engine.step())
    assert told(events["fails"]) == (tokens[:3], "error")
    assert events["fails"][-1].error == "the step failed; the server's log has the cause"
    engine._runner.fail_on = None
    engine.add(other)
    assert told(drain(engine)["other"]) == expected(other)
    assert_idle(engine)


def test_a_step_that_fails_late_leaves_who_came_after_it_alone():
    engine = ahead()
    engine._runner.fail_late_on = 39
    engine.add(request("fails", [39, 2, 3], max_tokens=9, ignore_eos=True))
    engine.step()
    other = request("other", [30, 20], max_tokens=9, ignore_eos=True)
    engine.add(other)
    events = drain(engine)
    assert told(events["fails"]) == ([], "error")
    assert events["fails"][-1].error == "the step failed; the server's log has the cause"
    assert told(events["other"]) == expected(other)
    assert_idle(engine)


def test_a_device_that_is_lost_is_the_end_though_a_step_is_under_way():
    engine = ahead()
    engine.add(request("a", [1, 2, 3], max_tokens=9))
    engine.step()
    engine._runner.lost = True
    with pytest.raises(EngineDeadError, match="the device is gone"):
        engine.step()
    engine.close()
    assert engine._runner.closed


def test_a_model_gives_the_same_tokens_ahead():
    """The real runner: what a step needs of the one before is put in its place by the backend."""

    def tokens(ahead):
        engine = build_engine(compose(["--model", "random:tiny", "--dtype", "float32", "--max-num-seqs", "3", *PLAIN]))
        engine._runner._backend.ahead = ahead
        for number in range(5):
            prompt = [(7 * number + index) % 250 for index in range(1 + 9 * number)]
            engine.add(request(f"r{number}", prompt, max_tokens=20, temperature=number % 2, seed=number, logprobs=1))
        events = drain(engine)
        engine.close()
        return {name: (told(own), [each.logprobs[0].logprob for each in own]) for name, own in events.items()}

    assert tokens(True) == tokens(False)
