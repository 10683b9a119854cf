"""What browsers are shown, without one: files under a strict policy, open to all, and routes that want the key."""

import asyncio
import threading
from pathlib import Path

import httpx
import pytest

from core.compose import compose
from core.compose.composer import PlanComposer
from core.errors import UserError
from frontends.openai_http.app import create_app
from frontends.openai_http.settings import HttpSettings
from tests.compose.fakes import CPU
from tests.frontends import in_process
from tests.frontends.fake_service import FakeService

PAGE = Path(__file__).parents[2] / "frontends" / "web" / "page"
REFUSED = {"settings": {"graph": "cuda", "tensor_parallel.size": 2}, "machine": "H800 80G", "count": 2}


@pytest.fixture(scope="module")
def composer():
    return PlanComposer(compose(["--model", "random:tiny"], env={}, probe=CPU))


def asked(*requests, page=PAGE, composer=None, **section):
    """The answers to (method, path, options), one after another."""
    service = FakeService()
    service.page, service.composer = page, composer
    app = create_app(service, HttpSettings(**section))

    async def run():
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return [await client.request(method, path, **options) for method, path, options in requests]

    return asyncio.run(run())


def test_every_file_comes_with_its_type_and_the_policy():
    paths = ["/", "/app.js", "/style.css", "/icon.svg", "/vendor/inter.woff2"]
    answers = asked(*(("GET", path, {}) for path in paths))
    assert [each.status_code for each in answers] == [200] * len(paths)
    text = ["text/html", "text/javascript", "text/css"]
    types = [*(f"{each}; charset=utf-8" for each in text), "image/svg+xml", "font/woff2"]
    assert [each.headers["content-type"] for each in answers] == types
    for answer in answers:
        policy = dict(each.split(" ", 1) for each in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["connect-src"] == policy["style-src"] == "'self'"
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert answers[0].text == (PAGE / "index.html").read_text()


def test_a_file_that_has_not_changed_is_not_sent_again():
    [first] = asked(("GET", "/app.js", {}))
    [again] = asked(("GET", "/app.js", {"headers": {"if-none-match": first.headers["etag"]}}))
    assert (again.status_code, again.content) == (304, b"")


def test_nothing_outside_the_folder_is_shown():
    [up, source, post] = asked(("GET", "/../plugin.py", {}), ("GET", "/vendor/..%2f..%2fplugin.py", {}), ("POST", "/", {}))
    assert (up.status_code, source.status_code, post.status_code) == (404, 404, 405)


def test_without_a_page_there_are_no_routes_of_it():
    answers = asked(("GET", "/", {}), ("GET", "/dashboard/live", {}), page=None)
    assert [each.status_code for each in answers] == [404, 404]
    assert answers[0].json()["error"]["message"] == "there is no GET /"


def test_the_page_is_open_and_what_it_asks_wants_the_key(composer):
    routes = [("GET", f"/dashboard/{name}", {}) for name in ("live", "plan", "words")]
    answers = asked(("GET", "/", {}), ("GET", "/vendor/purify.js", {}), *routes, composer=composer, api_key=("s3cret",))
    assert [each.status_code for each in answers] == [200, 200, 401, 401, 401]
    key = {"headers": {"authorization": "Bearer s3cret"}}
    answers = asked(*((*route[:2], key) for route in routes), composer=composer, api_key=("s3cret",))
    assert [each.status_code for each in answers] == [200, 200, 200]
    assert "s3cret" not in "".join(each.text for each in answers)


def test_live_figures():
    chat = {"json": {"messages": [{"role": "user", "content": "hi"}]}}
    [_, answer] = asked(("POST", "/v1/chat/completions", chat), ("GET", "/dashboard/live", {}))
    live = answer.json()
    assert live["up"] is True
    assert (live["engine"]["pages_total"], live["engine"]["generation_tokens"]) == (10, 11)
    first = live["latencies"]["first_token"]
    assert len(first["upper"]) == len(first["counts"])
    assert sum(first["counts"]) == 1
    assert first["upper"][-1] is None


def test_a_combination_is_judged_by_the_rules(composer):
    [answer] = asked(("POST", "/dashboard/compose", {"json": REFUSED}), composer=composer)
    judged = answer.json()
    assert (answer.status_code, judged["ok"]) == (200, False)
    assert [each["rule"] for each in judged["problems"]] == ["cuda-graphs-with-tensor-parallel"]


def test_combinations_are_judged_one_after_the_other():
    """So that they never take all of the threads that tokenize long prompts."""

    class Slow:
        both = threading.Barrier(2)

        def judge(self, asked):
            try:
                self.both.wait(0.2)
            except threading.BrokenBarrierError:
                return {"alone": True}
            return {"alone": False}

    async def use(web):
        return await asyncio.gather(*(web.post("/dashboard/compose", json={}) for _ in range(2)))

    service = FakeService()
    service.page, service.composer = PAGE, Slow()
    assert [each.json() for each in in_process.asked(in_process.web_client, service, use)] == [{"alone": True}] * 2


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"settings": {"tokenizer": "/etc"}}, "settings.tokenizer", "'tokenizer' is no setting that can be tried here"),
        ({"machine": "abacus"}, "machine", "machine 'abacus' is none of "),
        ({"count": 3, "machine": "H800 80G"}, "count", "count is to be one of 1, 2, 4, 8 on H800 80G"),
        ({"settings": []}, "settings", "settings: input should be an object"),
    ],
)
def test_what_cannot_be_judged_is_refused(composer, body, param, message):
    [answer] = asked(("POST", "/dashboard/compose", {"json": body}), composer=composer)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert error["message"].startswith(message)


def test_a_page_that_cannot_be_shown(tmp_path):
    with pytest.raises(UserError, match=r"^the page in .* has no index.html"):
        asked(page=tmp_path)
    (tmp_path / "index.html").touch()
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "models").touch()
    with pytest.raises(UserError, match=r"^the page has a file at /v1/models, which is a route"):
        asked(page=tmp_path)
