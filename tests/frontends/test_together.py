"""Several processes at one door, here two of them on one loop: whichever is asked answers for both."""

import asyncio
import pickle
from contextlib import AsyncExitStack, asynccontextmanager

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from frontends.openai_http.app import create_app
from frontends.openai_http.control import answers
from frontends.openai_http.metrics import Metrics
from frontends.openai_http.settings import HttpSettings
from frontends.openai_http.together import Together
from tests.frontends.fake_service import FakeService
from tests.frontends.test_control import COMPLETE, begun


@asynccontextmanager
async def two(folder, **section):
    services = FakeService(), FakeService()
    first = Together(str(folder), 0, 2)
    async with AsyncExitStack() as opened:
        clients = []
        for together, service in zip((first, pickle.loads(pickle.dumps(first.beside(1)))), services, strict=True):
            app = create_app(service, HttpSettings(**section), together=together)
            await opened.enter_async_context(together.answering(answers(app.state.door)))
            transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
            client = httpx2.AsyncClient(transport=transport, base_url="http://test")
            clients.append(await opened.enter_async_context(client))
        yield clients, services


def run(use, folder, **section):
    async def opened():
        async with two(folder, **section) as (clients, services):
            return await use(*clients, *services)

    return asyncio.run(asyncio.wait_for(opened(), 20))


def figures(text):
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_of_one_are_those_of_all(tmp_path):
    async def use(one, other, *_):
        for web in (one, one, other):
            await web.post(COMPLETE, json={"prompt": "x"})
        await other.post(COMPLETE, json={"prompt": "x", "max_tokens": -1})
        return [figures((await web.get("/metrics")).text) for web in (one, other)]

    for told in run(use, tmp_path):
        assert told["dovetail_http_requests_total", COMPLETE, "200"] == 3
        assert told["dovetail_http_requests_total", COMPLETE, "400"] == 1
        assert told["dovetail_time_to_first_token_seconds_count",] == 3
        assert told["dovetail_time_to_first_token_seconds_bucket", "+Inf"] == 3
        assert told["dovetail_engine_up",] == 1


def test_sums_have_every_label():
    one, other = Metrics(), Metrics()
    one.requests.labels("/a", "200").inc(2)
    other.requests.labels("/a", "200").inc()
    other.requests.labels("/b", "404").inc(5)
    [family] = [each for each in one.counted([other.samples()]) if each.name == "dovetail_http_requests"]
    told = {(sample.name, *sample.labels.values()): sample.value for sample in family.samples}
    assert told["dovetail_http_requests_total", "/a", "200"] == 3
    assert told["dovetail_http_requests_total", "/b", "404"] == 5
    assert len(told) == 2


def test_calls_of_all_are_counted_aborted_and_waited_for_by_either(tmp_path):
    async def use(one, other, service, second):
        calls = [*await begun(one, service, {"request_id": "a"}), *await begun(other, second, {"request_id": "b"})]
        loads = [(await web.get("/load")).json()["server_load"] for web in (one, other)]
        too_many = await one.post(COMPLETE, json={"prompt": "x"})
        aborted = (await one.post("/v1/abort_requests", json={"req_ids": ["b", "zzz"]})).json()["result"]
        await calls[1]
        waiting = asyncio.create_task(other.post("/v1/pause?mode=wait"))
        while not (await one.get("/v1/is_paused")).json()["result"]["is_paused"]:
            await asyncio.sleep(0)
        still = waiting.done()
        await one.post("/v1/abort_requests", json={"abort_all": True})
        await asyncio.gather(waiting, *calls)
        refused = [(await web.post(COMPLETE, json={"prompt": "x"})).status_code for web in (one, other)]
        await one.post("/v1/resume")
        taken = [(await web.post(COMPLETE, json={"prompt": "x"})).status_code for web in (one, other)]
        return loads, too_many.status_code, aborted, still, refused, taken

    loads, too_many, aborted, still, refused, taken = run(use, tmp_path, max_concurrency=2)
    assert (loads, too_many) == ([2, 2], 429)
    assert aborted == {"aborted": [{"request_id": "cmpl-b", "output_token_count": 5}], "not_found": ["zzz"]}
    assert (still, refused, taken) == (False, [503, 503], [200, 200])


def test_who_is_gone_is_left_out_with_its_calls(tmp_path):
    async def use():
        one, other = Together(str(tmp_path), 0, 2), Together(str(tmp_path), 1, 2)
        other.note_calls(4)
        before = await one.ask("metrics"), one.calls_elsewhere()  # it does not listen yet
        async with other.answering({}):
            pass
        return before, await one.ask("metrics"), one.calls_elsewhere()

    assert asyncio.run(use()) == (([], 4), [], 0)
