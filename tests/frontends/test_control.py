"""What an operator can do to a running server."""

import asyncio

import pytest

from tests.frontends.fake_service import FakeService
from tests.frontends.in_process import asked, posted, web_client

COMPLETE = "/v1/completions"
HELD = {"prompt": "x", "cache_salt": "hold_after=5"}


async def begun(web, service, *bodies):
    calls = [asyncio.create_task(web.post(COMPLETE, json={**HELD, **body})) for body in bodies]
    while service.held < len(bodies):
        await asyncio.sleep(0)
    return calls


def test_requests_are_ended_by_either_of_their_names():
    service = FakeService()

    async def use(web):
        calls = await begun(web, service, {"request_id": "a"}, {"request_id": "b"}, {"request_id": "c"})
        answer = await web.post("/v1/abort_requests", json={"req_ids": ["a", "cmpl-b", "zzz"]})
        ended = [(await call).json() for call in calls[:2]]
        rest = (await web.post("/v1/abort_requests", json={"abort_all": True})).json()
        await calls[2]
        return answer.json(), ended, rest

    answer, ended, rest = asked(web_client, service, use)
    assert (answer["status"], answer["error_message"]) == ("success", None)
    assert answer["result"] == {
        "aborted": [{"request_id": "cmpl-a", "output_token_count": 5}, {"request_id": "cmpl-b", "output_token_count": 5}],
        "not_found": ["zzz"],
    }
    assert [(each["choices"][0]["text"], each["choices"][0]["finish_reason"]) for each in ended] == [("Paris", "abort")] * 2
    assert [each["request_id"] for each in rest["result"]["aborted"]] == ["cmpl-c"]


def test_an_abort_says_what():
    refused = posted("/v1/abort_requests", {}, FakeService())
    assert (refused.status_code, refused.json()["error"]["message"]) == (400, "give req_ids, or abort_all as true")


def test_a_paused_server_takes_nothing_until_it_is_resumed():
    service = FakeService()

    async def use(web):
        [call] = await begun(web, service, {})
        paused = (await web.post("/v1/pause")).json()["result"]
        refused = await web.post(COMPLETE, json={"prompt": "x"})
        ready, healthy = await web.get("/ready"), await web.get("/health")
        told = (await web.get("/v1/is_paused")).json()["result"]
        resumed = (await web.post("/v1/resume")).json()["result"]
        taken = await web.post(COMPLETE, json={"prompt": "x"})
        return (await call).json(), paused, refused, ready, healthy, told, resumed, taken

    ended, paused, refused, ready, healthy, told, resumed, taken = asked(web_client, service, use)
    assert ended["choices"][0]["finish_reason"] == "abort"
    assert (paused, told, resumed) == ({"is_paused": True}, {"is_paused": True}, {"is_paused": False})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_paused")
    assert (ready.status_code, healthy.status_code, taken.status_code) == (503, 200, 200)


def test_a_pause_may_wait_for_what_runs():
    service = FakeService()

    async def use(web):
        [call] = await begun(web, service, {"request_id": "a"})
        pausing = asyncio.create_task(web.post("/v1/pause?mode=wait"))
        while (await web.get("/ready")).status_code == 200:
            await asyncio.sleep(0)
        waited = not pausing.done()
        service.ending["cmpl-a"].set()
        await call
        return waited, (await pausing).status_code, (await web.post("/v1/pause?mode=now")).json()["error"]

    waited, status, error = asked(web_client, service, use)
    assert (waited, status) == (True, 200)
    assert (error["param"], error["message"]) == ("mode", "mode is abort or wait, not 'now'")


def test_a_key_ends_its_own_calls_and_an_operator_everybodys():
    service = FakeService()
    ann, ben, boss = ({"authorization": f"Bearer {key}"} for key in ("a", "b", "o"))
    mine = {**HELD, "request_id": "mine"}

    async def use(web):
        call = asyncio.create_task(web.post(COMPLETE, json=mine, headers=ann))
        while service.held < 1:
            await asyncio.sleep(0)
        by_ben = await web.post("/v1/abort_requests", json={"req_ids": ["mine", "cmpl-mine"]}, headers=ben)
        refused = [
            await web.post(path, json={"abort_all": True}, headers=ann)
            for path in ("/v1/abort_requests", "/v1/pause", "/v1/resume")
        ]
        again = await web.post(COMPLETE, json=mine, headers=ben)
        by_boss = await web.post("/v1/abort_requests", json={"req_ids": ["mine"]}, headers=boss)
        paused = await web.post("/v1/pause", headers=boss)
        return await call, by_ben, refused, again, by_boss, paused

    section = {"api_key": ("ann=a", "ben=b"), "operator_key": ("o",)}
    call, by_ben, refused, again, by_boss, paused = asked(web_client, service, use, **section)
    assert by_ben.json()["result"] == {"aborted": [], "not_found": ["mine", "cmpl-mine"]}
    assert [(each.status_code, each.json()["error"]["code"]) for each in refused] == [(403, "operator_only")] * 3
    assert refused[1].json()["error"]["message"] == (
        "only an operator pauses this server: show a key that the server was started with as --openai-http-operator-key"
    )
    assert (again.status_code, again.json()["error"]["code"]) == (400, "duplicate_id")
    assert [each["request_id"] for each in by_boss.json()["result"]["aborted"]] == ["cmpl-mine"]
    assert (call.json()["choices"][0]["finish_reason"], paused.status_code) == ("abort", 200)


@pytest.mark.parametrize(
    ("section", "shown", "status"),
    [
        ({"host": "::1"}, {}, 200),
        ({"host": "localhost"}, {}, 200),
        ({"host": "0.0.0.0"}, {}, 403),
        ({"host": "0.0.0.0", "operator_key": ("o",)}, {"x-api-key": "o"}, 200),
        ({"operator_key": ("o",)}, {"x-api-key": "p"}, 403),
        ({"api_key": ("k",)}, {"x-api-key": "k"}, 403),
    ],
)
def test_who_is_an_operator(section, shown, status):
    assert posted("/v1/pause", {}, FakeService(), shown, **section).status_code == status
    if "api_key" not in section:  # everybody else may ask as before
        assert posted(COMPLETE, {"prompt": "x"}, FakeService(), **section).status_code == 200


@pytest.mark.parametrize(
    ("priorities", "taken", "refused", "told"),
    [
        (
            "lower",
            (None, 0, 7),
            -1,
            "priority must be at least 0, got -1: a request may let others go first, and may go before",
        ),
        ("none", (None, 0), 7, "this server takes no priority from requests: leave it out"),
        ("all", (-7, 7), 1 << 31, "priority: input should be less than"),
    ],
)
def test_a_request_may_step_back_and_before_others_where_the_operator_says_so(priorities, taken, refused, told):
    service = FakeService()
    for rank in taken:
        assert posted(COMPLETE, {"prompt": "x", "priority": rank}, service, priorities=priorities).status_code == 200
    assert [request[3] for request in service.requests] == [rank or 0 for rank in taken]
    error = posted(COMPLETE, {"prompt": "x", "priority": refused}, service, priorities=priorities)
    assert (error.status_code, error.json()["error"]["param"]) == (400, "priority")
    assert error.json()["error"]["message"].startswith(told)


@pytest.mark.parametrize(
    ("origin", "allowed", "status"),
    [
        ("https://evil.example", (), 403),
        ("null", (), 403),
        ("http://test", (), 200),
        ("https://mine.example", ("https://mine.example",), 200),
    ],
)
def test_a_page_of_another_site_is_no_operator(origin, allowed, status):
    answer = posted("/v1/pause", None, FakeService(), {"origin": origin}, allowed_origins=allowed)
    assert answer.status_code == status
