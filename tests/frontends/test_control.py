"""What an operator can do to a running server."""

import asyncio

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
