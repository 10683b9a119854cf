"""What surrounds the routes: ids, logs, rates, waiting times, other origins."""

import asyncio
import json
import logging

import pytest

from core.errors import RequestError
from core.json_log import JsonLines
from frontends.openai_http.door import Door
from frontends.openai_http.intake import Intake
from frontends.openai_http.rates import Rates
from frontends.openai_http.settings import HttpSettings
from tests.frontends.fake_service import FakeService
from tests.frontends.in_process import asked, posted, web_client

COMPLETE = "/v1/completions"
PROMPT = {"prompt": "x", "max_tokens": 4}


# --- ids and logs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/health", "/nowhere", "/v1/models"])
def test_every_answer_has_the_id_its_request_came_with_or_one_of_its_own(path):
    async def use(web):
        given = await web.get(path, headers={"x-request-id": "mine-7"})
        return given.headers["x-request-id"], (await web.get(path)).headers["x-request-id"], await web.get(path)

    mine, one, other = asked(web_client, FakeService(), use)
    assert mine == "mine-7"
    assert len({one, other.headers["x-request-id"], mine}) == 3


def test_an_id_that_could_split_a_line_is_not_repeated():
    answer = posted(COMPLETE, PROMPT, FakeService(), {"x-request-id": "a b\x7f"})
    assert answer.headers["x-request-id"].startswith("cmpl-")


def test_what_breaks_inside_has_its_id_too_and_counts_as_500():
    async def use(web):
        broken = await web.post(COMPLETE, json={"prompt": "x", "cache_salt": "break=1"}, headers={"x-request-id": "mine"})
        return broken, (await web.get("/metrics")).text

    broken, metrics = asked(web_client, FakeService(), use)
    assert (broken.status_code, broken.headers["x-request-id"]) == (500, "mine")
    assert 'dovetail_http_requests_total{route="/v1/completions",status="500"} 1.0' in metrics


def test_the_access_log_has_a_line_an_answer_and_no_prompt(caplog):
    with caplog.at_level(logging.INFO, "dovetail.http"):
        headers = {"x-request-id": "mine", "authorization": "Bearer k"}
        posted(COMPLETE, {"prompt": "a secret"}, FakeService(), headers, access_log=True, api_key=("ann=k",))
    [record] = [record for record in caplog.records if record.levelno == logging.INFO]
    line = json.loads(JsonLines().format(record))
    assert line.pop("seconds") >= 0
    assert line.pop("time").endswith("+00:00")
    assert line.pop("message").startswith("POST /v1/completions 200 in ")
    assert line == {
        "level": "info",
        "logger": "dovetail.http",
        "request_id": "mine",
        "method": "POST",
        "path": COMPLETE,
        "status": 200,
        "client": "127.0.0.1",
        "key": "ann",
    }


def test_the_line_has_the_id_that_the_client_was_told(caplog):
    with caplog.at_level(logging.INFO, "dovetail.http"):
        told = posted(COMPLETE, PROMPT, FakeService(), access_log=True).headers["x-request-id"]
    assert [record.request_id for record in caplog.records if record.levelno == logging.INFO] == [told]


def test_a_json_line_has_its_traceback():
    try:
        raise ValueError("no")
    except ValueError as error:
        record = logging.LogRecord("a", logging.ERROR, "", 1, "it %s", ("broke",), (type(error), error, error.__traceback__))
    line = json.loads(JsonLines().format(record))
    assert (line["message"], line["level"]) == ("it broke", "error")
    assert line["exception"].endswith("ValueError: no")


# --- rates --------------------------------------------------------------------------------------------------------------


def test_requests_refill_steadily():
    now = [0.0]
    rates = Rates(2, None, lambda: now[0])
    assert [rates.admit("ann"), rates.admit("ann"), rates.admit("ben")] == [None] * 3
    assert rates.admit("ann") == ("requests", 30.0)
    now[0] = 20.0
    assert rates.admit("ann") == ("requests", pytest.approx(10.0))
    now[0] = 30.0
    assert rates.admit("ann") is None


def test_tokens_may_end_in_debt_which_is_waited_off():
    now = [0.0]
    rates = Rates(None, 60, lambda: now[0])
    assert rates.admit("ann") is None
    rates.charge("ann", 90)
    assert rates.admit("ann") == ("tokens", 31.0)
    now[0] = 31.0
    assert rates.admit("ann") is None


def test_of_more_askers_than_are_remembered_who_asked_longest_ago_is_forgotten(monkeypatch):
    monkeypatch.setattr("frontends.openai_http.rates._REMEMBERED", 2)
    rates = Rates(1, None, lambda: 0.0)
    assert [rates.admit(who) for who in ("ann", "ben")] == [None] * 2
    assert rates.admit("ann") == ("requests", 60.0)
    assert rates.admit("eve") is None  # in the place of ben, though he is not through with his minute
    assert [rates.admit(who) for who in ("ann", "eve")] == [("requests", 60.0)] * 2
    assert list(rates._buckets) == ["ann", "eve"]


def test_who_asks_too_often_is_told_when_to_come_back_and_others_are_not():
    async def use(web):
        def by(key):
            return web.post(COMPLETE, json=PROMPT, headers={"authorization": f"Bearer {key}"})

        return [await by("a"), await by("a"), await by("b"), await web.get("/v1/models", headers={"x-api-key": "a"})]

    first, second, other, looked = asked(web_client, FakeService(), use, requests_per_minute=1, api_key=("ann=a", "ben=b"))
    assert [each.status_code for each in (first, second, other, looked)] == [200, 429, 200, 200]
    assert 1 <= int(second.headers["retry-after"]) <= 60
    assert second.json()["error"]["message"] == (
        "more than 1 requests a minute were asked for, the most one key or client may: try again later"
    )


def test_prompt_and_answer_count_as_tokens():
    async def use(web):
        return [(await web.post(COMPLETE, json=PROMPT)).status_code for _ in range(3)]

    assert asked(web_client, FakeService(), use, tokens_per_minute=7) == [200, 200, 429]  # 2 + 4 tokens each


# --- waiting ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_who_waits_too_long_for_a_first_token_is_refused(stream):
    service = FakeService()
    held = {"prompt": "x", "stream": stream, "cache_salt": "hold_after=0"}
    answer = posted(COMPLETE, held, service, max_waiting_time=0.01)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "timeout")
    assert answer.headers["retry-after"] in ("1", "2")
    assert answer.json()["error"]["message"] == "no token came within 0.01 s, the longest a call may wait: try again later"
    assert len(service.aborted) == 1


def test_who_has_a_token_waits_no_more():
    async def use(web):
        call = asyncio.create_task(web.post(COMPLETE, json={"prompt": "x", "request_id": "a", "cache_salt": "hold_after=1"}))
        while not service.held:
            await asyncio.sleep(0)
        await asyncio.sleep(0.03)
        service.ending["cmpl-a"].set()
        return await call

    service = FakeService()
    assert asked(web_client, service, use, max_waiting_time=0.02).json()["choices"][0]["text"] == "P"


# --- other origins ------------------------------------------------------------------------------------------------------

ORIGIN = {"origin": "https://a.example"}
PREFLIGHT = ORIGIN | {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}


def test_by_default_no_other_origin_is_told_anything():
    async def use(web):
        return await web.post(COMPLETE, json=PROMPT, headers=ORIGIN), await web.options(COMPLETE, headers=PREFLIGHT)

    answer, preflight = asked(web_client, FakeService(), use)
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert preflight.status_code == 405


def test_an_allowed_origin_may_ask_before_it_shows_a_key():
    async def use(web):
        shown = {"authorization": "Bearer k"}
        return (
            await web.options(COMPLETE, headers=PREFLIGHT),
            await web.post(COMPLETE, json=PROMPT, headers=ORIGIN | shown),
            await web.options(COMPLETE, headers=PREFLIGHT | {"origin": "https://b.example"}),
        )

    preflight, answer, other = asked(web_client, FakeService(), use, allowed_origins=("https://a.example",), api_key=("k",))
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, "https://a.example")
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://a.example")
    assert (other.status_code, "access-control-allow-origin" in other.headers) == (400, False)


# --- bodies on their way ------------------------------------------------------------------------------------------------


class Coming:
    """A request whose body comes as ``parts`` say, and then no further."""

    headers: dict[str, str] = {}

    def __init__(self, *parts):
        self.parts = parts
        self.there = asyncio.Event()

    async def stream(self):
        for part in self.parts:
            yield part
        self.there.set()
        await asyncio.Event().wait()


def test_a_body_that_comes_no_further_is_given_up():
    with pytest.raises(RequestError, match="came too slowly") as refused:
        asyncio.run(Intake(1024, silence=0.01).read(Coming(b"x")))
    assert (refused.value.status, refused.value.code) == (408, "slow_client")


def test_bodies_on_their_way_are_bounded_together():
    async def use():
        intake, slow = Intake(1024), [Coming(b"x" * 1024) for _ in range(16)]
        reading = [asyncio.create_task(intake.read(each)) for each in slow]
        for each in slow:
            await each.there.wait()
        with pytest.raises(RequestError, match="bodies of more than 16384 bytes are on their way") as refused:
            await intake.read(Coming(b"x"))
        for each in reading:
            each.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        again = Coming(b"x" * 1024)
        last = asyncio.create_task(intake.read(again))
        await again.there.wait()  # it was taken
        last.cancel()
        return refused.value.status

    assert asyncio.run(use()) == 429


def test_no_more_bodies_are_on_their_way_than_calls_may_be():
    async def use():
        door = Door(FakeService(), HttpSettings(max_concurrency=1))
        slow = Coming(b"x")
        first = asyncio.create_task(door.reading(door.intake.read(slow)))
        await slow.there.wait()
        with pytest.raises(RequestError, match="the bodies of 1 requests are on their way") as refused:
            await door.reading(door.intake.read(Coming()))
        first.cancel()
        return refused.value.status

    assert asyncio.run(use()) == 429


def test_a_packed_body_is_told_as_such_and_a_mark_before_it_is_passed_over():
    async def use(web):
        marked = await web.post(COMPLETE, content=b"\xef\xbb\xbf" + json.dumps(PROMPT).encode())
        return marked, await web.post(COMPLETE, content=b"\x1f\x8b", headers={"content-encoding": "gzip"})

    marked, packed = asked(web_client, FakeService(), use)
    assert marked.status_code == 200
    assert (packed.status_code, packed.json()["error"]["code"]) == (415, "unsupported_encoding")
