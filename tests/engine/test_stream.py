import asyncio

import pytest

from core.engine import stream as streams
from core.engine.stream import TokenStream
from core.errors import RequestError
from core.interfaces.request import TokenEvent, TokenLogprobs

ALTERNATIVES = TokenLogprobs(-1.0, 0, [1, 2, 3], [-1.0, -2.0, -3.0])


def opened(ended):
    return TokenStream(None, ["a", "b"], ended.append)


async def read(stream):
    return [event.token_ids async for _, event in stream]


def test_a_reader_who_leaves_too_much_is_told_so_and_its_requests_end(monkeypatch):
    monkeypatch.setattr(streams, "MOST_UNREAD", 10)

    async def run():
        ended = []
        stream = opened(ended)
        for number in (0, 1):
            stream.put(number, TokenEvent("x", [7], logprobs=[ALTERNATIVES]))
        assert ended == []
        stream.put(1, TokenEvent("b", [8, 9, 9]))
        assert ended == [["a", "b"]]
        had = [(await anext(stream))[1].token_ids for _ in range(2)]
        with pytest.raises(RequestError, match=r"^the client reads too slowly: its requests were ended$") as refused:
            await anext(stream)
        return had, refused.value.code, refused.value.status

    assert asyncio.run(run()) == ([[7], [7, 8, 9, 9]], "slow_client", 408)


def test_a_quick_reader_has_what_comes_during_a_pause_at_once_and_the_first_and_the_last_without_one():
    async def run():
        stream = TokenStream(None, ["a"], [].append, pause=lambda: pause)
        told, pause = [], 0.01

        async def reads():
            async for _, event in stream:
                told.append(event.token_ids)

        async def come(*events):
            for event in events:
                stream.put(0, event)
                for _ in range(5):
                    await asyncio.sleep(0)

        reader = asyncio.create_task(reads())
        await come(TokenEvent("a", [1]))
        assert told == [[1]], "the first"
        await come(TokenEvent("a", [2]), TokenEvent("a", [3]))
        assert told == [[1]]
        async with asyncio.timeout(10):
            while len(told) < 2:
                await asyncio.sleep(0.001)
        pause = 3600.0
        await come(TokenEvent("a", [4], "length"))
        async with asyncio.timeout(10):
            await reader
        return told

    assert asyncio.run(run()) == [[1], [2, 3], [4]]


def test_what_is_read_is_counted_no_more_and_the_end_is_never_too_much(monkeypatch):
    monkeypatch.setattr(streams, "MOST_UNREAD", 10)

    async def run():
        ended = []
        stream = opened(ended)
        for _ in range(20):
            stream.put(0, TokenEvent("a", [1, 2], logprobs=[ALTERNATIVES, ALTERNATIVES]))
            await anext(stream)
        stream.put(0, TokenEvent("a", [1] * 10, "length"))
        stream.put(1, TokenEvent("b", [1], "length"))
        return ended, await read(stream)

    assert asyncio.run(run()) == ([], [[1] * 10, [1]])


def test_who_comes_late_finds_what_each_request_gained_as_one_event():
    async def run():
        stream = opened([])
        stream.put(0, TokenEvent("a", [1], logprobs=[ALTERNATIVES]))
        stream.put(1, TokenEvent("b", [5], num_cached_tokens=3))
        stream.put(0, TokenEvent("a", [2, 3], "stop", stop_token=3, logprobs=[ALTERNATIVES] * 2))
        stream.abort()
        return [each async for each in stream]

    assert asyncio.run(run()) == [
        (0, TokenEvent("a", [1, 2, 3], "stop", 3, [ALTERNATIVES] * 3)),
        (1, TokenEvent("b", [5], "abort", num_cached_tokens=3)),
    ]
