"""Text over the engine's process: continuations, stop strings, early ends, draining."""

import asyncio
import time

import pytest

from core.errors import EngineDeadError, RequestError
from core.interfaces.frontend import ModelCard
from core.interfaces.limits import RequestLimits
from core.interfaces.request import SamplingParams, TokenLogprobs
from core.text.service import TextService, continuations
from tests.service.fake_engine import CLUMSY, DIES, REFUSED, VOCAB, LetterTokenizer
from tests.service.test_engine_process import NOTICED_WITHIN, engine, nothing_left_behind  # noqa: F401

CARD = ModelCard("fake", ("fake",), 10_000, VOCAB, created=0)
ENDLESS = SamplingParams(max_tokens=None)


def serve(client, limits=None):
    return TextService(client, LetterTokenizer(), None, CARD, limits or client.wait_ready())


async def collect(deltas):
    found = {}
    async for delta in deltas:
        found.setdefault(delta.index, []).append(delta)
    return found


def text(deltas):
    return "".join(delta.text for delta in deltas)


def test_a_text_with_its_counts():
    with engine() as client:

        async def run():
            return (await collect(serve(client).generate([0, 0], SamplingParams(max_tokens=3), request_id="r")))[0]

        deltas = asyncio.run(run())
    assert text(deltas) == "BCD"
    last = deltas[-1]
    assert (last.finish_reason, last.num_prompt_tokens, last.num_generated_tokens, last.num_cached_tokens) == (
        "length",
        2,
        3,
        3,
    )
    assert {delta.finish_reason for delta in deltas[:-1]} <= {None}  # what came while nobody read comes as one


def test_many_likelihoods_are_put_into_words_while_others_have_their_turn():
    class Knows:
        async def score(self, prompt, most):
            return [TokenLogprobs(-1.0, 0, [7] * most, [-0.5] * most) for _ in prompt[1:]]

    turns = []

    async def others():
        while True:
            turns.append(None)
            await asyncio.sleep(0)

    async def run():
        beside = asyncio.ensure_future(others())
        infos = await serve(Knows(), RequestLimits(10_000, VOCAB)).score([1] * 1000, 2)
        beside.cancel()
        return len(infos)

    assert (asyncio.run(run()), len(turns) > 10) == (999, True)


def test_prompts_are_read_in_the_engines_process():
    with engine() as client:

        async def run():
            service = serve(client)
            states = await asyncio.gather(service.embed([1, 2]), service.embed([1, 2], pooling="mean"))
            infos = await service.score([1, 2, 3], 2)
            errors = []
            for reading in (service.embed([REFUSED]), service.score([REFUSED]), service.embed([CLUMSY]), service.embed([])):
                try:
                    await reading
                except RequestError as error:
                    errors.append((error.message, error.param, error.status))
            return states, infos, errors

        states, infos, errors = asyncio.run(run())
    assert [[round(each, 6) for each in state] for state in states] == [[0.6, 0.8], [0.8, 0.6]]
    assert [(info.text, info.logprob, info.text_offset, len(info.top)) for info in infos] == [
        ("C", -1.0, 1, 2),
        ("D", -2.0, 2, 2),
    ]
    assert errors == [
        ("nobody wants this", "prompt", 400),
        ("nobody wants this", "prompt", 400),
        ("an internal error; the server's log has the cause", None, 500),
        ("the prompt is empty: give at least one token", "prompt", 400),
    ]


def test_more_continuations_than_can_ever_run_and_wait_are_no_matter_of_trying_again():
    with engine() as client:
        limits = RequestLimits(max_model_len=100, vocab=VOCAB, at_once=3)

        async def run(n):
            return await collect(serve(client, limits).generate([0], SamplingParams(n=n, max_tokens=1), request_id="r"))

        assert len(asyncio.run(run(3))) == 3
        with pytest.raises(RequestError, match=r"^n must be at most 3 on this server, got 4$") as refused:
            asyncio.run(run(4))
    assert (refused.value.status, refused.value.param) == (400, "n")


def test_continuations_are_requests_of_their_own_with_seeds_that_count_up():
    requests = continuations("id", (1, 2), SamplingParams(n=3, seed=2**64 - 2), priority=4, cache_salt="s")
    assert [request.request_id for request in requests] == ["id", "id-1", "id-2"]
    assert [request.params.seed for request in requests] == [2**64 - 2, 2**64 - 1, 0]
    assert {(request.params.n, request.priority, request.cache_salt, *request.prompt_token_ids) for request in requests} == {
        (1, 4, "s", 1, 2)
    }
    assert [request.params.seed for request in continuations("id", [1], SamplingParams(n=2))] == [None, None]


def test_continuations_are_interleaved_under_their_index():
    with engine(step_seconds=0.001) as client:

        async def run():
            deltas = serve(client).generate([0], SamplingParams(n=3, max_tokens=4), request_id="r")
            return [delta.index async for delta in deltas]

        order = asyncio.run(run())
    assert order == [0, 1, 2] * 4


def test_a_stop_string_ends_the_text_and_the_engine_request_but_not_its_mates():
    with engine(step_seconds=0.001) as client:

        async def run():
            service = serve(client)
            params = SamplingParams(n=2, max_tokens=None, stop=("DE",))
            found = await collect(service.generate([0], params, request_id="r"))
            return found, await service.stats()

        found, stats = asyncio.run(run())
    for index in (0, 1):
        assert text(found[index]) == "BC"
        assert (found[index][-1].finish_reason, found[index][-1].stop_reason) == ("stop", "DE")
    assert stats.num_running == 0
    assert stats.requests_finished == {"abort": 2}


def test_what_cannot_be_served_is_refused_before_the_first_delta():
    limits = RequestLimits(max_model_len=16, vocab=VOCAB, capacity=12)
    wrong = [
        ([], {}, "the prompt is empty: give at least one token", "prompt", "invalid_value"),
        (
            [0] * 12,
            {},
            "the prompt has 12 tokens; at most 11 fit, since the context is 12 tokens and one of them must be generated",
            "prompt",
            "context_length_exceeded",
        ),
        ([1, VOCAB], {}, "1000 is not a token id of this model: ids are whole numbers in [0, 1000)", "prompt", "invalid_value"),
        ([1, -1], {}, "-1 is not a token id of this model: ids are whole numbers in [0, 1000)", "prompt", "invalid_value"),
        ([1, True], {}, "True is not a token id of this model: ids are whole numbers in [0, 1000)", "prompt", "invalid_value"),
        (
            [0] * 8,
            {"max_tokens": 5},
            "the prompt has 8 tokens and max_tokens asks for 5 more; the context is 12 tokens: "
            "shorten the prompt, or ask for at most 4",
            "max_tokens",
            "context_length_exceeded",
        ),
        (
            [0],
            {"stop_token_ids": (VOCAB,), "max_tokens": 1},
            "1000 is not a token id of this model: ids are whole numbers in [0, 1000)",
            "stop_token_ids",
            "invalid_value",
        ),
        (
            [0],
            {"logit_bias": {VOCAB: 1.0}, "max_tokens": 1},
            "1000 is not a token id of this model: ids are whole numbers in [0, 1000)",
            "logit_bias",
            "invalid_value",
        ),
        ([0], {"logprobs": 1001, "max_tokens": 1}, "logprobs must be at most 1000, got 1001", "logprobs", "invalid_value"),
    ]
    with engine() as client:

        async def run():
            service = serve(client, limits)
            for prompt, params, message, param, code in wrong:
                with pytest.raises(RequestError) as caught:
                    await anext(service.generate(prompt, SamplingParams(**params), request_id="r"))
                assert (caught.value.message, caught.value.param, caught.value.code) == (message, param, code)
            return (await service.stats()).steps

        assert asyncio.run(run()) == 0


def test_a_full_queue_and_an_engine_s_refusal_come_before_the_first_delta():
    with engine(max_waiting=1, step_seconds=0.001) as client:

        async def run():
            service = serve(client)
            first = service.generate([0], ENDLESS, request_id="a")
            await anext(first)
            with pytest.raises(RequestError) as full:
                await anext(service.generate([0], ENDLESS, request_id="b"))
            with pytest.raises(RequestError) as twice:
                await anext(service.generate([0], ENDLESS, request_id="a"))
            await first.aclose()
            with pytest.raises(RequestError, match="nobody wants this"):
                await anext(service.generate([REFUSED], ENDLESS, request_id="b"))
            assert (await service.stats()).num_running == 0
            return full.value.status, twice.value.message

        assert asyncio.run(run()) == (429, "a request 'a' is already running")


def test_leaving_the_iterator_or_cancelling_its_task_ends_the_request():
    with engine(step_seconds=0.001) as client:

        async def run():
            service = serve(client)
            deltas = service.generate([0], SamplingParams(n=2, max_tokens=None), request_id="left")
            await anext(deltas)
            await deltas.aclose()
            task = asyncio.ensure_future(collect(service.generate([0], ENDLESS, request_id="cancelled")))
            while (await service.stats()).num_running != 1:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return await service.stats()

        stats = asyncio.run(run())
    assert stats.num_running == 0
    assert stats.requests_finished == {"abort": 3}


def test_abort_by_id_finishes_the_iterator():
    with engine(step_seconds=0.001) as client:

        async def run():
            service = serve(client)
            deltas = service.generate([0], SamplingParams(n=2, max_tokens=None), request_id="r")
            await anext(deltas)
            assert await service.abort("r")
            found = await collect(deltas)
            assert not await service.abort("r")
            return found

        found = asyncio.run(run())
    assert [found[index][-1].finish_reason for index in (0, 1)] == ["abort", "abort"]


def test_a_hundred_streams_of_which_a_third_leave_midway():
    with engine(step_seconds=0.0005) as client:

        async def one(service, i):
            leaves = i % 3 == 0  # long before its end
            deltas = service.generate([i], SamplingParams(max_tokens=None if leaves else 40), request_id=f"r{i}")
            if not leaves:
                return text((await collect(deltas))[0])
            got = [(await anext(deltas)).text for _ in range(5)]
            await deltas.aclose()
            return "".join(got)

        async def run():
            service = serve(client)
            texts = await asyncio.gather(*(one(service, i) for i in range(100)))
            return texts, await service.stats()

        texts, stats = asyncio.run(run())
    for i, found in enumerate(texts):
        assert len(found) == 40 if i % 3 else len(found) >= 5  # who is late finds several tokens at once
        assert found == "".join(chr(65 + i + k) for k in range(1, len(found) + 1))
    assert stats.num_running == 0
    assert stats.requests_finished == {"length": 66, "abort": 34}


def test_the_engine_s_death_ends_streams_and_is_seen_in_health():
    with engine() as client:

        async def run():
            service = serve(client)
            assert service.health().ready
            began = time.monotonic()
            with pytest.raises(EngineDeadError):
                await collect(service.generate([DIES], ENDLESS, request_id="r"))
            reason = await service.wait_dead()
            assert time.monotonic() - began < NOTICED_WITHIN
            with pytest.raises(EngineDeadError, match="SIGKILL"):
                await anext(service.generate([0], ENDLESS, request_id="r"))
            await service.drain()
            return service.health(), reason

        health, reason = asyncio.run(run())
    assert (health.alive, health.ready, health.detail) == (False, False, reason)


def test_drain_refuses_new_requests_and_lets_running_ones_finish():
    with engine(step_seconds=0.001) as client:

        async def run():
            service = serve(client)
            running = service.generate([0], SamplingParams(max_tokens=50), request_id="r")
            await anext(running)
            draining = asyncio.ensure_future(service.drain(60))
            await asyncio.sleep(0)
            with pytest.raises(RequestError) as refused:
                await anext(service.generate([0], ENDLESS, request_id="new"))
            assert not draining.done()
            assert (service.health().alive, service.health().ready) == (True, False)
            found = await collect(running)
            await draining
            return found[0][-1].finish_reason, refused.value

        reason, refused = asyncio.run(run())
    assert reason == "length"
    assert (refused.message, refused.code, refused.status) == ("the server is shutting down", "shutting_down", 503)


def test_drain_ends_what_takes_longer_than_its_time():
    with engine(step_seconds=0.001) as client:

        async def run():
            service = serve(client)
            running = asyncio.ensure_future(collect(service.generate([0], ENDLESS, request_id="r")))
            while (await service.stats()).num_running != 1:
                await asyncio.sleep(0)
            await service.drain(0.05)
            return (await running)[0][-1].finish_reason, (await service.stats()).num_running

        assert asyncio.run(run()) == ("abort", 0)
