"""More than five hundred bodies that are wrong, each in its own way: each is refused with 4xx and told which field it is."""

import asyncio
import json
import socket
import time
import types
import typing

import httpx
import psutil
import pytest

from frontends.openai_http.app import create_app
from frontends.openai_http.messages import MessagesBody
from frontends.openai_http.responses import ResponsesBody
from frontends.openai_http.schema import ChatBody, CompletionBody
from tests.frontends.fake_service import FakeService
from tests.must_show.served import serving

USER = [{"role": "user", "content": "hi"}]
ROUTES = {
    "/v1/chat/completions": (ChatBody, {"messages": USER}),
    "/v1/completions": (CompletionBody, {"prompt": "hi"}),
    "/v1/responses": (ResponsesBody, {"input": "hi"}),
    "/v1/messages": (MessagesBody, {"model": "demo", "max_tokens": 4, "messages": USER}),
}
WRONG = {  # for a field that is to be of this type
    int: ['"x"', "[]", "{}", "1.5", "true", "1e400", "NaN", '"\\ud800"'],
    float: ['"x"', "[]", "{}", "true", "1e400", "NaN", "-Infinity"],
    bool: ['"x"', "[]", "{}", "2", '"true"'],
    str: ["1", "[]", "{}", "true", '"\\ud800"'],
    list: ['"x\\ud800"', "1", "{}", "true", "[null]", "[[[]]]"],
    dict: ['"x"', "1", "[]", "true"],
}
DEEP = "[" * 200_000 + "]" * 200_000


def kinds(annotation):
    """The types a field may have, as far as its annotation says."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return {kind for part in typing.get_args(annotation) for kind in kinds(part)}
    if origin is typing.Annotated:
        return kinds(typing.get_args(annotation)[0])
    return {origin or annotation} - {type(None)}


def wrong_bodies():
    """(route, field, body)"""
    for route, (model, right) in ROUTES.items():
        for name, field in model.model_fields.items():
            [*found] = kinds(field.annotation)
            values = [DEEP]
            if len(found) == 1 and found[0] in WRONG:
                values += WRONG[found[0]]
            for value in values:
                rest = {key: each for key, each in right.items() if key != name}
                text = json.dumps(rest)[:-1]
                yield route, name, f"{text}{', ' if rest else ''}{json.dumps(name)}: {value}}}"
        for cut in ("", "{", "[]", "null", '"x"', "\x00", '{"messages"', json.dumps(right)[:-1]):
            yield route, None, cut


def test_each_is_refused_and_told_where():
    async def everything():
        transport = httpx.ASGITransport(app=create_app(FakeService()), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return [(each, await client.post(each[0], content=each[2].encode())) for each in wrong_bodies()]

    answers = asyncio.run(everything())
    assert len(answers) > 500
    for (route, name, body), answer in answers:
        about = f"{route} {body[:120]}: {answer.status_code} {answer.text[:200]}"
        assert 400 <= answer.status_code < 500, about
        message = answer.json()["error"]["message"]
        broken = "\\ud800" in body or DEEP in body or "NaN" in body or "Infinity" in body or "1e400" in body
        assert message, about
        if name is not None and not broken:  # what is no JSON at all has no fields
            assert name in message, about


@pytest.fixture(scope="module")
def server():
    with serving("--model", "random:tiny", "--max-model-len", "256", "--threads", "1", "--log-level", "warning") as server:
        yield server


def seconds(client):
    began = time.perf_counter()
    answer = client.post("/v1/completions", json={"prompt": [1, 2, 3], "max_tokens": 8, "ignore_eos": True})
    assert answer.status_code == 200
    return time.perf_counter() - began


def test_large_and_slow_bodies_harm_nobody_else(server):
    host, port = server.url.removeprefix("http://").split(":")
    process = psutil.Process(server.process.pid)
    with httpx.Client(base_url=server.url, timeout=30) as client:
        usual = sorted(seconds(client) for _ in range(10))[5]
        before = process.memory_info().rss
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {10**6}\r\n\r\n"
        slow = [socket.create_connection((host, int(port))) for _ in range(100)]
        try:
            for connection in slow:
                connection.sendall(head.encode() + b'{"prompt": "')  # and never goes on
            large = json.dumps({"prompt": "word " * 2_000_000}).encode()  # 10 MB
            for _ in range(5):
                answer = client.post("/v1/completions", content=large)
                assert 400 <= answer.status_code < 500
                assert "prompt" in answer.json()["error"]["message"] or answer.status_code == 413
            meanwhile = sorted(seconds(client) for _ in range(10))[5]
        finally:
            for connection in slow:
                connection.close()
        assert meanwhile < 3 * usual + 0.05
        assert process.memory_info().rss - before < 200 << 20
        assert client.get("/load").json()["server_load"] == 0
