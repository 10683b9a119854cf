"""The application without a network: what it refuses and how, what it passes on, what it does when a client leaves."""

import asyncio
import dataclasses
import json
import logging
import re
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from core.errors import EngineDeadError, RequestError, UserError
from core.interfaces.frontend import TextDelta
from core.interfaces.request import Grammar
from frontends.openai_http.app import create_app
from frontends.openai_http.deltas import MOST_UNREAD, TURN, Deltas
from frontends.openai_http.errors import StoppingError
from frontends.openai_http.server import OpenAIServer
from frontends.openai_http.settings import HttpSettings
from tests.frontends.fake_service import ANSWER, BOS, FakeService

CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "hi"}]


@asynccontextmanager
async def app_client(service, **section):
    app = create_app(service, HttpSettings(**section))
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def post(path, body, service=None, section=None, **kwargs):
    async def run():
        async with app_client(service or FakeService(), **(section or {})) as client:
            if isinstance(body, bytes):
                return await client.post(path, content=body, **kwargs)
            return await client.post(path, json=body, **kwargs)

    return asyncio.run(run())


def get(path, service=None):
    async def run():
        async with app_client(service or FakeService()) as client:
            return await client.get(path)

    return asyncio.run(run())


def error_of(response):
    assert response.headers["content-type"] == "application/json"
    [(key, error)] = response.json().items()
    assert key == "error"
    assert set(error) == {"message", "type", "param", "code"}
    return error


MALFORMED = [
    # what is posted to chat completions, param, beginning of the message
    (b"", None, "invalid JSON"),
    (b"{", None, "invalid JSON"),
    (b"\xff\xfe", None, "invalid JSON"),
    (b"[]", None, "input should be an object"),
    (b"null", None, "input should be an object"),
    (b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", None, "invalid JSON: recursion limit"),
    (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', None, "invalid JSON"),
    (
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        "temperature",
        "temperature: input should be a fin",
    ),
    (b'{"messages": [{"role": "user", "content": "x"}], "top_p": 1e999}', "top_p", "top_p: input should be a finite number"),
    ({}, "messages", "messages: field required"),
    ({"messages": []}, "messages", "messages: list should have at least 1 item"),
    ({"messages": "hi"}, "messages", "messages: input should be a valid array"),
    ({"messages": [3]}, "messages[0]", "messages[0]: input should be an object"),
    ({"messages": [{"content": "x"}]}, "messages[0].role", "messages[0].role: field required"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "messages[0].role: input should be 'system'"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "messages[0].content: must be a string or a list"),
    ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content", "messages[0].content: part 0 must be an obj"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content",
        "messages[0].content: part 0 needs",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content",
        "messages[0].content: part 0 is of type 'image_url': this model takes text only",
    ),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "a conversation cannot begin with the assistant"),
    ({"messages": [{"role": "user", "content": "x" * 600}]}, "messages", "the prompt has 618 tokens; at most 499 fit"),
    ({"messages": USER, "model": 3}, "model", "model: input should be a valid string"),
    ({"messages": USER, "temperature": "1"}, "temperature", "temperature: input should be a valid number"),
    ({"messages": USER, "temperature": 1000}, "temperature", "temperature must be a number in [0, 100]"),
    ({"messages": USER, "max_tokens": 0}, "max_tokens", "max_tokens must be at least 1, got 0"),
    ({"messages": USER, "max_tokens": 2.5}, "max_tokens", "max_tokens: input should be a valid integer"),
    ({"messages": USER, "max_tokens": True}, "max_tokens", "max_tokens: input should be a valid integer"),
    ({"messages": USER, "max_completion_tokens": -1}, "max_completion_tokens", "max_completion_tokens must be at least 1"),
    ({"messages": USER, "max_tokens": 10**30}, "max_tokens", "max_tokens must be a whole number"),
    ({"messages": USER, "n": 0}, "n", "n must be a whole number in [1, 128]"),
    ({"messages": USER, "stream": "yes"}, "stream", "stream: input should be a valid boolean"),
    ({"messages": USER, "stop": 3}, "stop", "stop: must be a string or a list of strings"),
    ({"messages": USER, "stop": [""]}, "stop", "each stop string must be a non-empty string"),
    ({"messages": USER, "stop_token_ids": [-1]}, "stop_token_ids", "-1 is not a token id"),
    ({"messages": USER, "stop_token_ids": [0x110000]}, "stop_token_ids", "1114112 is not a token id of this model"),
    ({"messages": USER, "logit_bias": {"x": 1}}, "logit_bias", "logit_bias takes token ids as keys, not 'x'"),
    ({"messages": USER, "logit_bias": {"-5": 1}}, "logit_bias", "logit_bias takes token ids as keys, not '-5'"),
    ({"messages": USER, "logit_bias": {"5": "1"}}, "logit_bias.5", "logit_bias.5: input should be a valid number"),
    ({"messages": USER, "logit_bias": {"5": 101}}, "logit_bias", "the bias of token 5 must lie in [-100, 100]"),
    ({"messages": USER, "top_logprobs": 2}, "top_logprobs", "top_logprobs needs logprobs to be true"),
    ({"messages": USER, "logprobs": True, "top_logprobs": 21}, "top_logprobs", "top_logprobs must lie in [0, 20], got 21"),
    ({"messages": USER, "logprobs": 2}, "logprobs", "logprobs: input should be a valid boolean"),
    ({"messages": USER, "stream_options": {"include_usage": True}}, "stream_options", "stream_options needs stream to be true"),
    ({"messages": USER, "min_tokens": 5, "max_tokens": 4}, "min_tokens", "min_tokens (5) is greater than max_tokens (4)"),
    ({"messages": USER, "request_id": "a\nb"}, "request_id", "request_id: string should match pattern"),
    ({"messages": USER, "tools": [{"type": "function"}]}, "tools[0].function", "tools[0].function: field required"),
    ({"messages": USER, "modalities": ["audio"]}, "modalities", "modalities is not supported by this server"),
    ({"messages": USER, "chat_template_kwargs": {"self": 1}}, "chat_template_kwargs", "self cannot be given to the template"),
]


@pytest.mark.parametrize(("body", "param", "message"), MALFORMED)
def test_what_a_chat_refuses(body, param, message):
    service = FakeService()
    response = post(CHAT, body, service)
    error = error_of(response)
    assert response.status_code == 400, error
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith(message)
    assert error["param"] == param
    assert service.requests == []


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "prompt", "prompt: field required"),
        ({"prompt": None}, "prompt", "prompt: must be a string, a list of strings"),
        ({"prompt": []}, "prompt", "prompt: must not be empty"),
        ({"prompt": [[]]}, "prompt", "prompt: must be a string"),
        ({"prompt": ["a", 1]}, "prompt", "prompt: must be a string"),
        ({"prompt": [True]}, "prompt", "prompt: must be a string"),
        ({"prompt": [-1]}, "prompt", "-1 is not a token id of this model"),
        ({"prompt": [0x110000]}, "prompt", "1114112 is not a token id of this model"),
        ({"prompt": "", "add_special_tokens": False}, "prompt", "the prompt is empty"),
        ({"prompt": "x" * 499}, "prompt", "the prompt has 500 tokens"),
        ({"prompt": "x", "suffix": "y"}, "suffix", "suffix is not supported"),
        ({"prompt": "x", "best_of": 0}, "best_of", "best_of (0) must be at least n (1)"),
        ({"prompt": "x", "logprobs": True}, "logprobs", "logprobs: input should be a valid integer"),
        ({"prompt": "x", "logprobs": -1}, "logprobs", "logprobs must lie in [0, 20], got -1"),
    ],
)
def test_what_a_completion_refuses(body, param, message):
    response = post(COMPLETE, body)
    error = error_of(response)
    assert (response.status_code, error["param"]) == (400, param)
    assert error["message"].startswith(message)


def test_every_wrong_field_is_in_the_message():
    error = error_of(post(CHAT, {"messages": USER, "temperature": "x", "n": "y", "seed": []}))
    assert error["message"].count(";") == 2
    assert error["param"] == "n"


def test_a_prompt_of_the_greatest_length_is_taken():
    service = FakeService()
    assert post(COMPLETE, {"prompt": "x" * 498, "max_tokens": 1}, service).status_code == 200
    assert post(COMPLETE, {"prompt": ["x", "x" * 490]}, service).json()["choices"][1]["finish_reason"] == "length"
    assert [request[2].max_tokens for request in service.requests] == [1, 9, 9]  # a default is made to fit
    asked = post(COMPLETE, {"prompt": "x" * 490, "max_tokens": 10}, service)
    assert (asked.status_code, error_of(asked)["param"]) == (400, "max_tokens")
    for field in ("max_tokens", "max_completion_tokens"):
        assert error_of(post(CHAT, {"messages": USER, field: 499}, service))["param"] == field


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_beyond_the_limit_is_refused(chunked):
    body = json.dumps({"prompt": "x" * 5000}).encode()

    async def parts():
        for at in range(0, len(body), 512):
            yield body[at : at + 512]

    async def run():
        async with app_client(FakeService(), max_request_bytes=2048) as client:
            return await client.post(COMPLETE, content=parts() if chunked else body)

    response = asyncio.run(run())
    assert response.status_code == 413
    assert error_of(response)["code"] == "request_too_large"


def test_unknown_routes_and_methods_have_openai_bodies():
    missing = get("/v2/nothing")
    assert (missing.status_code, error_of(missing)["message"]) == (404, "there is no GET /v2/nothing")
    wrong = get(CHAT)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert error_of(wrong)["message"] == "/v1/chat/completions does not take GET"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("script", "status", "code", "message"),
    [
        ("refuse=429", 429, "rate_limit_exceeded", "the queue is full"),
        ("refuse=503", 503, "invalid_value", "the queue is full"),
        ("break=1", 500, "internal_error", "an internal error; the server's log has the cause"),
        ("error_after=0", 500, "generation_failed", "the kernel overflowed"),
        ("endless=1", 500, "generation_failed", "the engine ended the request without finishing it"),
        ("die_after=0", 503, "engine_dead", "the engine is gone: killed by the script"),
    ],
)
def test_failures_before_the_first_token_are_statuses(script, status, code, message, stream):
    response = post(COMPLETE, {"prompt": "x", "cache_salt": script, "stream": stream})
    if stream and script == "endless=1":  # known at the end only
        assert json.loads(response.text.rsplit("data: ", 1)[1])["error"]["message"] == message
        return
    error = error_of(response)
    assert (response.status_code, error["code"], error["message"]) == (status, code, message)
    assert "secret" not in response.text
    assert ("retry-after" in response.headers) == (status == 429)


def test_a_failure_in_mid_stream_is_the_last_event():
    text = post(COMPLETE, {"prompt": "x", "stream": True, "cache_salt": "error_after=2"}).text
    *_, last, end = text.split("\n\n")
    assert end == ""
    assert json.loads(last.removeprefix("data: ")) == {
        "error": {"message": "the kernel overflowed", "type": "server_error", "param": None, "code": "generation_failed"}
    }
    assert "[DONE]" not in text


def test_a_stream_ends_with_done():
    response = post(CHAT, {"messages": USER, "stream": True, "max_tokens": 1})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.text.endswith("data: [DONE]\n\n")


def test_all_parameters_reach_the_engine():
    service = FakeService()
    given = {
        "n": 2,
        "temperature": 0.5,
        "top_p": 0.75,
        "top_k": 7,
        "min_p": 0.125,
        "presence_penalty": 0.25,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.5,
        "seed": -3,
        "stop": ["a", "b"],
        "stop_token_ids": [4],
        "include_stop_str_in_output": True,
        "ignore_eos": True,
        "max_tokens": 9,
        "min_tokens": 2,
        "skip_special_tokens": False,
    }
    others = {"logit_bias": {"5": -100, "6": 2.5}, "logprobs": 3, "priority": 4, "cache_salt": "chunk=1", "user": "me"}
    assert post(COMPLETE, {"prompt": "hey", **given, **others, "best_of": 2, "no_such_field": {}}, service).status_code == 200
    [(request_id, prompt, params, priority, salt)] = service.requests
    assert request_id.startswith("cmpl-")
    assert prompt == [BOS, *map(ord, "hey")]
    assert {name: getattr(params, name) for name in given} == given | {"stop": ("a", "b"), "stop_token_ids": (4,)}
    assert (params.logit_bias, params.logprobs, priority, salt) == ({5: -100.0, 6: 2.5}, 3, 4, "chunk=1")


def test_defaults_are_the_requests_then_the_checkpoints_then_openais():
    service = FakeService(defaults={"temperature": 0.8, "top_p": 0.9, "top_k": 20, "eos_token_id": 3})
    post(COMPLETE, {"prompt": "x"}, service)
    post(CHAT, {"messages": USER, "temperature": 0, "top_p": None}, service)
    plain = FakeService()
    post(CHAT, {"messages": USER}, plain)
    completion, chat = (request[2] for request in service.requests)
    assert (completion.temperature, completion.top_p, completion.top_k, completion.max_tokens) == (0.8, 0.9, 20, 16)
    assert (chat.temperature, chat.top_p, chat.top_k, chat.max_tokens) == (0.0, 0.9, 20, None)
    [(_, _, bare, *_)] = plain.requests
    assert (bare.temperature, bare.top_p, bare.top_k, bare.max_tokens, bare.n) == (1.0, 1.0, 0, None, 1)


def test_max_completion_tokens_beats_max_tokens():
    service = FakeService()
    post(CHAT, {"messages": USER, "max_tokens": 3, "max_completion_tokens": 5}, service)
    assert service.requests[0][2].max_tokens == 5


def test_parts_are_joined_and_developer_is_system():
    service = FakeService()
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    post(CHAT, {"messages": messages, "max_tokens": 1, "add_generation_prompt": False}, service)
    assert service.tokenizer.decode(service.requests[0][1]) == "system: be brief\nuser: a\nb\n"


def test_what_is_asked_for_in_vain_may_be_empty():
    nothing = {"tools": [], "response_format": {"type": "text"}, "guided_json": None, "modalities": ["text"]}
    assert post(CHAT, {"messages": USER, **nothing}).status_code == 200


def test_unknown_fields_are_ignored_and_logged(caplog):
    with caplog.at_level(logging.DEBUG, "dovetail.http"):
        assert post(CHAT, {"messages": USER, "zzz": 1, "store": True}).status_code == 200
    assert "/v1/chat/completions: unknown fields are ignored: store, zzz" in caplog.messages


def test_without_a_template_chat_is_refused_and_completion_is_not():
    error = error_of(post(CHAT, {"messages": USER}, FakeService(chat=False)))
    assert error["code"] == "no_chat_template"
    assert post(COMPLETE, {"prompt": "x"}, FakeService(chat=False)).status_code == 200


def test_served_names():
    service = FakeService(served_names=("small", "org/small"))
    assert [model["id"] for model in get("/v1/models", service).json()["data"]] == ["small", "org/small"]
    assert get("/v1/models/org/small", service).json()["id"] == "org/small"
    assert post(COMPLETE, {"prompt": "x"}, service).json()["model"] == "small"
    assert post(COMPLETE, {"prompt": "x", "model": "org/small"}, service).json()["model"] == "org/small"
    refused = post(COMPLETE, {"prompt": "x", "model": "models/fake-1b"}, service)
    assert refused.status_code == 404
    assert error_of(refused)["message"] == (
        "the model 'models/fake-1b' is not served here; this server has 'small', 'org/small'"
    )
    assert get("/v1/models", FakeService(served_names=())).json()["data"][0]["id"] == "models/fake-1b"


def test_version_and_health():
    assert set(get("/version").json()) == {"version"}
    assert (get("/health").status_code, get("/health").json()) == (200, {"status": "ok"})
    assert get("/ping").status_code == 200
    dead = FakeService()
    dead.dead_because = "it fell"
    assert (get("/health", dead).status_code, get("/health", dead).json()["detail"]) == (503, "it fell")
    assert get("/ping", dead).status_code == 503
    draining = FakeService()
    draining.draining = True
    assert get("/health", draining).status_code == 503


def samples(text):
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_parse_and_count():
    async def run():
        service = FakeService()
        async with app_client(service) as client:
            await client.post(COMPLETE, json={"prompt": "x", "max_tokens": 4, "cache_salt": "delay=0.001"})
            await client.post(COMPLETE, json={"prompt": "x", "max_tokens": 3, "stream": True})
            await client.post(COMPLETE, json={"prompt": 5})
            await client.get("/v1/models/a/b")
            await client.get("/nowhere/4711")
            alive = samples((await client.get("/metrics")).text)
            service.dead_because = "it fell"
            return alive, samples((await client.get("/metrics")).text)

    alive, dead = asyncio.run(run())
    assert alive["dovetail_http_requests_total", "/v1/completions", "200"] == 2
    assert alive["dovetail_http_requests_total", "/v1/completions", "400"] == 1
    assert alive["dovetail_http_requests_total", "/v1/models/{name:path}", "404"] == 1
    assert alive["dovetail_http_requests_total", "404", "unmatched"] == 1
    assert alive["dovetail_http_generations_in_flight",] == 0
    assert alive["dovetail_time_to_first_token_seconds_count",] == 2
    assert alive["dovetail_e2e_request_latency_seconds_count",] == 2
    assert alive["dovetail_inter_token_latency_seconds_count",] >= 3
    assert alive["dovetail_inter_token_latency_seconds_bucket", "0.001"] >= 0
    assert [alive[f"dovetail_kv_pages{kind}",] for kind in ("", "_free", "_used", "_cached")] == [10, 6, 3, 1]
    assert alive["dovetail_generation_tokens_total",] == 11
    assert alive["dovetail_requests_finished_total", "stop"] == 3
    assert (alive["dovetail_engine_up",], dead["dovetail_engine_up",]) == (1, 0)
    assert dead["dovetail_kv_pages",] == 10  # the last that was known


def test_the_page_of_metrics_has_exactly_what_is_told():
    async def use():
        async with app_client(FakeService()) as client:
            await client.post(COMPLETE, json={"prompt": "x"})
            return (await client.get("/metrics")).text

    told, help_of, kinds = asyncio.run(use()), {}, {}
    for mark, name, rest in re.findall(r"^# (HELP|TYPE) (\S+) (.*)$", told, re.MULTILINE):
        (help_of if mark == "HELP" else kinds)[name] = rest
    page = (Path(__file__).parents[2] / "docs" / "operating" / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*) \|$", page, re.MULTILINE)
    assert rows == [(name, kind, help_of[name]) for name, kind in kinds.items()]


def test_metrics_answer_though_the_engine_does_not(monkeypatch):
    monkeypatch.setattr("frontends.openai_http.door.STATS_TIMEOUT", 0.01)
    service = FakeService()
    service.stats_hang = True
    assert samples(get("/metrics", service).text)["dovetail_engine_up",] == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("after", [0, 3])
def test_a_client_that_leaves_aborts_its_request(stream, after):
    """Driven by hand, message by message, since an HTTP client would hide when it leaves."""

    async def run():
        service = FakeService()
        app = create_app(service)
        body = json.dumps({"prompt": ["a", "b"], "stream": stream, "cache_salt": f"hold_after={after}"}).encode()
        left, sent = asyncio.Event(), []
        bodies = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            if bodies:
                return bodies.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": COMPLETE,
            "raw_path": COMPLETE.encode(),
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            "scheme": "http",
            "server": ("test", 80),
            "client": ("test", 1),
        }
        serving = asyncio.create_task(app(scope, receive, send))
        while len(service.running) < 2 or (stream and after and b'"r"' not in b"".join(m.get("body", b"") for m in sent)):
            await asyncio.sleep(0)
        left.set()
        await asyncio.wait_for(serving, 5)
        return service, app.state.door, sent

    service, door, sent = asyncio.run(run())
    assert sorted(service.aborted) == sorted(request[0] for request in service.requests)
    assert len(service.aborted) == 2
    assert service.running == set()
    assert door._calls == {}
    if not (stream and after):
        assert [message["status"] for message in sent if message["type"] == "http.response.start"] == [499]


def test_one_failing_prompt_aborts_its_siblings():
    service = FakeService()
    original = service.generate

    def generate(prompt, params, *, request_id, **kwargs):
        kwargs["cache_salt"] = "error_after=2" if request_id.endswith(" 1") else "hold_after=1"
        return original(prompt, params, request_id=request_id, **kwargs)

    service.generate = generate
    response = post(COMPLETE, {"prompt": ["a", "b"], "request_id": "r"}, service)
    assert response.status_code == 500
    assert service.aborted == ["cmpl-r 0"]


def test_the_prompts_of_one_call_take_no_id_that_another_call_may_have():
    async def run():
        service = FakeService()
        async with app_client(service) as client:
            several = asyncio.create_task(
                client.post(COMPLETE, json={"prompt": ["a", "b"], "request_id": "r", "cache_salt": "hold_after=1"})
            )
            while len(service.running) < 2:
                await asyncio.sleep(0)
            other = await client.post(COMPLETE, json={"prompt": "c", "request_id": "r-1"})
            several.cancel()
            await asyncio.gather(several, return_exceptions=True)
            return other, [request[0] for request in service.requests]

    other, ids = asyncio.run(run())
    assert other.status_code == 200
    assert len(set(ids)) == 3


@pytest.mark.parametrize("path", ["/health", "/ping", "/v1/models", "/v1/models/fake", "/metrics", "/version"])
def test_what_is_read_can_be_looked_at_with_head(path):
    async def run():
        async with app_client(FakeService()) as client:
            return await client.head(path)

    assert asyncio.run(run()).status_code == 200


def test_a_long_path_is_not_told_back_whole():
    assert error_of(get("/" + "a" * 5000))["message"] == f"there is no GET /{'a' * 199}..."


def test_a_request_id_in_use_is_refused():
    async def run():
        service = FakeService()
        async with app_client(service) as client:
            body = {"prompt": "x", "request_id": "r"}
            first = asyncio.create_task(client.post(COMPLETE, json={**body, "cache_salt": "hold_after=0"}))
            while not service.running:
                await asyncio.sleep(0)
            second = await client.post(COMPLETE, json=body)
            service.die("enough")
            return second, await first

    second, first = asyncio.run(run())
    assert (second.status_code, error_of(second)["param"]) == (400, "request_id")
    assert first.status_code == 503


def test_too_many_calls_at_once_are_refused():
    async def run():
        service = FakeService()
        async with app_client(service, max_concurrency=1) as client:
            first = asyncio.create_task(client.post(COMPLETE, json={"prompt": "x", "cache_salt": "hold_after=0"}))
            while not service.running:
                await asyncio.sleep(0)
            second = await client.post(COMPLETE, json={"prompt": "x"})
            service.die("enough")
            await first
            return second

    second = asyncio.run(run())
    assert second.status_code == 429
    assert second.headers["retry-after"] in ("1", "2")


def test_a_stopping_server_takes_nothing_new():
    async def run():
        app = create_app(FakeService())
        app.state.door.close(StoppingError("the server is stopping"))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            return await client.post(COMPLETE, json={"prompt": "x"}), await client.get("/health")

    refused, health = asyncio.run(run())
    assert (refused.status_code, error_of(refused)["code"]) == (503, "server_stopping")
    assert (health.status_code, health.json()) == (503, {"status": "not ready", "detail": "the server is stopping"})


def delta(text, finish=None, index=0):
    return TextDelta(
        index=index,
        text=text,
        token_ids=tuple(map(ord, text)),
        logprobs=None,
        finish_reason=finish,
        num_prompt_tokens=1,
        num_generated_tokens=len(text),
    )


def test_deltas_that_are_ready_come_as_one_a_choice():
    async def source():
        for text in "abc":
            yield delta(text)
            yield delta(text.upper(), index=1)
        yield delta("d", "stop")

    async def run():
        deltas = Deltas([source()])
        batch = await deltas.batch()
        return [
            (number, each.index, each.text, each.token_ids, each.finish_reason) for number, each in batch
        ], await deltas.batch()

    batch, end = asyncio.run(run())
    assert batch == [(0, 0, "abcd", (97, 98, 99, 100), "stop"), (0, 1, "ABC", (65, 66, 67), None)]
    assert end == []


@pytest.mark.parametrize("error", [EngineDeadError("gone"), StoppingError("stopping")])
def test_failing_deltas_end_though_their_source_goes_on(error):
    closed = []

    async def source():
        try:
            while True:
                yield delta("x")
                await asyncio.sleep(0)
        finally:
            closed.append(True)

    async def run():
        deltas = Deltas([source()])
        await deltas.batch()
        deltas.fail(error)
        while await deltas.batch():
            pass

    with pytest.raises(type(error)):
        asyncio.run(asyncio.wait_for(run(), 5))
    assert closed == [True]


def test_what_nobody_reads_is_bounded_and_others_have_their_turn():
    given = []

    async def source():
        """Much that is there already: it never waits by itself."""
        for number in range(3000):
            given.append(number)
            yield delta("x")

    async def run():
        turns, ready = 0, Deltas([source()])
        while len(given) < MOST_UNREAD and turns < 1000:
            await asyncio.sleep(0)
            turns += 1
        for _ in range(100):
            await asyncio.sleep(0)
        held, lengths = len(given), []
        while batch := await ready.batch():
            lengths.append(len(batch[0][1].text))
        return turns, held, lengths

    turns, held, lengths = asyncio.run(asyncio.wait_for(run(), 5))
    assert held == MOST_UNREAD
    assert turns >= MOST_UNREAD // TURN
    assert (sum(lengths), max(lengths)) == (3000, MOST_UNREAD)


def test_a_chunk_may_have_more_tokens_than_are_kept_for_nobody():
    async def source():
        for _ in range(2 * MOST_UNREAD):
            yield delta("x")

    async def run():
        return [len(batch[0][1].text) for batch in [await Deltas([source()], least=MOST_UNREAD + 50).batch()]]

    assert asyncio.run(asyncio.wait_for(run(), 5)) == [MOST_UNREAD + 50]


def test_answer_is_what_the_fake_says():
    assert post(CHAT, {"messages": USER}).json()["choices"][0]["message"]["content"] == ANSWER


def test_more_prompts_than_can_ever_run_and_wait_are_no_matter_of_trying_again():
    service = FakeService()
    service.card = dataclasses.replace(service.card, at_once=5)
    service.tokenizer.encode = None  # nothing is read before it is refused
    response = post("/v1/completions", {"prompt": ["a", "b", "c"], "n": 2}, service)
    assert response.status_code == 400
    assert error_of(response) == {
        "message": "3 prompts with 2 continuations each are more than this server takes at once: "
        "at most 5 continuations; send several calls",
        "type": "invalid_request_error",
        "param": "prompt",
        "code": "invalid_value",
    }
    service = FakeService()
    service.card = dataclasses.replace(service.card, at_once=6)
    assert len(post("/v1/completions", {"prompt": ["a", "b", "c"], "n": 2}, service).json()["choices"]) == 6


# --- tokens, keys, load ------------------------------------------------------------------------------------------------


def test_tokenize_and_detokenize():
    assert post("/tokenize", {"prompt": "hé", "return_token_strs": True}).json() == {
        "count": 3,
        "max_model_len": 500,
        "tokens": [BOS, ord("h"), ord("é")],
        "token_strs": ["\x01", "h", "é"],
    }
    assert post("/tokenize", {"model": "fake", "prompt": "hi", "add_special_tokens": False}).json()["tokens"] == [104, 105]
    chat = post("/tokenize", {"messages": USER}).json()
    assert "".join(map(chr, chat["tokens"])) == "user: hi\nassistant: "
    without = post("/tokenize", {"messages": USER, "add_generation_prompt": False}).json()
    assert without["count"] == chat["count"] - len("assistant: ")
    assert post("/detokenize", {"tokens": [BOS, 104, 105]}).json() == {"prompt": "\x01hi"}
    assert post("/detokenize", {"tokens": [BOS, 104, 105], "skip_special_tokens": True}).json() == {"prompt": "hi"}


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/tokenize", {}, 400, "give either prompt or messages"),
        ("/tokenize", {"prompt": "a", "messages": USER}, 400, "give either prompt or messages"),
        ("/tokenize", {"prompt": 3}, 400, "prompt: input should be a valid string"),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404, "the model 'other' is not served here; this server has 'fake'"),
        ("/detokenize", {}, 400, "tokens: field required"),
        ("/detokenize", {"tokens": [2, -1]}, 400, "token id -1 is outside the vocabulary of 1114112"),
        ("/detokenize", {"tokens": ["2"]}, 400, "tokens[0]: input should be a valid integer"),
    ],
)
def test_what_the_tokenizer_routes_refuse(path, body, status, message):
    response = post(path, body)
    assert response.status_code == status
    assert error_of(response)["message"] == message


def authorized(section, path, headers):
    async def run():
        async with app_client(FakeService(), **section) as client:
            return await client.get(path, headers=headers)

    return asyncio.run(run())


def test_a_server_with_keys_lets_in_who_shows_one(tmp_path):
    (tmp_path / "keys").write_text("# ours\nbob=sk-b\n\nsk-c=d\n")
    section = {"api_key": ("alice=sk-a",), "api_key_file": str(tmp_path / "keys")}
    for key in ("sk-a", "sk-b", "sk-c=d"):
        assert authorized(section, "/v1/models", {"authorization": f"Bearer {key}"}).status_code == 200
        assert authorized(section, "/v1/models", {"x-api-key": key}).status_code == 200
    for path in ("/health", "/ready", "/ping", "/metrics", "/version"):
        assert authorized(section, path, {}).status_code == 200
    refused = {
        "this server wants an API key: send it as 'Authorization: Bearer KEY'": ({}, {"authorization": "Basic sk-a"}),
        "the API key is not one of this server's": ({"authorization": "Bearer alice=sk-a"}, {"x-api-key": "sk-d"}),
    }
    for message, all_headers in refused.items():
        for headers in all_headers:
            for path in ("/v1/models", "/load", "/nowhere"):
                response = authorized(section, path, headers)
                assert response.status_code == 401
                assert response.headers["www-authenticate"] == "Bearer"
                assert error_of(response) == {
                    "message": message,
                    "type": "invalid_request_error",
                    "param": None,
                    "code": "invalid_api_key",
                }


def test_keys_are_named_in_the_log_and_never_shown(caplog):
    caplog.set_level(logging.DEBUG, logger="dovetail")
    section = {"api_key": ("alice=sk-secret", "sk-other")}
    for key in ("sk-secret", "sk-other", "sk-wrong"):
        authorized(section, "/v1/models", {"authorization": f"Bearer {key}"})
    said = [record.getMessage() for record in caplog.records if record.name == "dovetail.http"]
    assert said == ["GET /v1/models by alice", "GET /v1/models by key 2"]
    assert "sk-" not in repr(HttpSettings(**section))


@pytest.mark.parametrize("given", [[""], ["alice=sk-a", " "]])
def test_an_empty_key_is_refused_before_anything_is_loaded(given):
    section = HttpSettings.model_validate(dict(HttpSettings(api_key=given, port=0)))  # as a plan hands it on
    with pytest.raises(UserError) as refused:
        OpenAIServer(section, drain_timeout=1.0)
    assert str(refused.value) == (
        "no API key in --api-key: it is empty\n"
        "  set by: openai_http.api_key\n"
        "  remedy: --api-key KEY; if a shell variable has the key, see that it is set\n"
        "  remedy: leave --api-key out if everybody may ask"
    )


def test_a_file_without_keys_is_refused(tmp_path):
    empty = tmp_path / "keys"
    empty.write_text("# nothing yet\n")
    with pytest.raises(UserError, match="has no API key"):
        create_app(FakeService(), HttpSettings(api_key_file=str(empty)))
    with pytest.raises(UserError, match="the file of API keys cannot be read: "):
        create_app(FakeService(), HttpSettings(api_key_file=str(tmp_path / "none")))


def test_load_counts_the_calls_in_flight():
    async def run():
        async with app_client(FakeService()) as client:
            idle = (await client.get("/load")).json()
            body = {"prompt": "a", "stream": True, "cache_salt": "delay=0.01"}
            call = asyncio.create_task(client.post(COMPLETE, json=body))
            while not (busy := (await client.get("/load")).json())["server_load"]:
                await asyncio.sleep(0)
            await call
            return idle, busy, (await client.get("/load")).json()

    idle, busy, after = asyncio.run(run())
    assert [each["server_load"] for each in (idle, busy, after)] == [0, 1, 0]
    assert idle["max_concurrency"] == 4096


# --- the form of an output ---------------------------------------------------------------------------------------------

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
CALLED = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
TAG = {
    "type": "structural_tag",
    "structures": [{"begin": f"<f={name}>", "schema": SCHEMA, "end": "</f>"} for name in "ab"],
    "triggers": ["<f="],
}
PARTED = [[{"text": f"{name}>"}, {"json_schema": SCHEMA}, {"text": "</f>"}] for name in "ab"]
REPEATED = [{"any_of": [[{"until": "<f="}, {"any_of": PARTED}]]}]
TAGGED = Grammar("parts", json.dumps([{"repeat": REPEATED, "least": 0}, {"anything": True}]))


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Grammar("json_object")),
        ({"response_format": CALLED}, Grammar("json_schema", json.dumps(SCHEMA))),
        ({"guided_json": SCHEMA}, Grammar("json_schema", json.dumps(SCHEMA))),
        ({"guided_json": '{"type": "null"}'}, Grammar("json_schema", '{"type": "null"}')),
        ({"guided_regex": "a+"}, Grammar("regex", "a+")),
        ({"guided_choice": ["a", "b"]}, Grammar("choice", '["a", "b"]')),
        ({"guided_grammar": 'start: "a"'}, Grammar("grammar", 'start: "a"')),
        ({"structured_outputs": {"regex": "a+"}}, Grammar("regex", "a+")),
        ({"structured_outputs": {"json_object": True, "regex": None}}, Grammar("json_object")),
        ({"response_format": TAG}, TAGGED),
        ({"structural_tag": json.dumps(TAG)}, TAGGED),
        ({"structured_outputs": {"structural_tag": TAG}}, TAGGED),
    ],
)
@pytest.mark.parametrize(("path", "asked"), [(CHAT, {"messages": USER}), (COMPLETE, {"prompt": "hi"})])
def test_the_form_reaches_the_engine(path, asked, fields, grammar):
    service = FakeService()
    assert post(path, {**asked, **fields}, service).status_code == 200
    [(_, _, params, _, _)] = service.requests
    assert params.grammar == grammar


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        (
            {"response_format": {"type": "xml"}},
            "response_format",
            "response_format is text, json_object, json_schema or structural_tag, not 'xml'",
        ),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format",
            "json_schema needs an object with the schema under the key 'schema'",
        ),
        ({"guided_json": 3}, "guided_json", "guided_json takes a JSON schema, as an object or as text"),
        ({"guided_choice": []}, "guided_choice", "guided_choice takes a list of non-empty strings"),
        ({"guided_regex": ["a"]}, "guided_regex", "guided_regex takes a non-empty string"),
        (
            {"guided_regex": "a", "response_format": {"type": "json_object"}},
            "guided_regex",
            "an output has one form: response_format and guided_regex cannot be had together",
        ),
        (
            {"structured_outputs": {"xml": "a"}},
            "structured_outputs",
            "structured_outputs knows json, regex, choice, grammar, json_object and structural_tag, not 'xml'",
        ),
        (
            {"structural_tag": "{"},
            "structural_tag",
            "structural_tag: a structural tag has a list of structures and a list of triggers",
        ),
        (
            {"response_format": TAG | {"triggers": ["<g"]}},
            "response_format",
            "response_format: no trigger begins '<f=a>'",
        ),
        (
            {"response_format": TAG | {"structures": [{"begin": "<f=a>", "end": "</f>"}]}},
            "response_format",
            "response_format: a structure has texts begin and end, and a JSON schema between",
        ),
    ],
)
def test_forms_that_are_refused(fields, param, message):
    error = error_of(post(CHAT, {"messages": USER, **fields}))
    assert (error["param"], error["message"]) == (param, message)


@pytest.mark.parametrize(("path", "asked"), [(CHAT, {"messages": USER}), (COMPLETE, {"prompt": "hi"})])
def test_what_the_engine_says_of_a_grammar_is_about_the_field_that_brought_it(path, asked):
    class Refusing(FakeService):
        async def generate(self, *args, **kwargs):
            raise RequestError("the grammar cannot be used: it is none", param="grammar")
            yield

    response = post(path, {**asked, "guided_regex": "("}, Refusing())
    assert response.status_code == 400
    assert error_of(response)["param"] == "guided_regex"
