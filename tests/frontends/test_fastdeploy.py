"""--compat fastdeploy: how that server counts, stops and refuses."""

import pytest

from tests.frontends.fake_service import ANSWER, FakeService
from tests.frontends.in_process import asked, posted, web_client

COMPLETE, CHAT = "/v1/completions", "/v1/chat/completions"


class Ending(FakeService):
    """Keeps the stop string where it is asked to, as the real service does."""

    async def generate(self, prompt, params, **kwargs):
        async for delta in super().generate(prompt, params, **kwargs):
            if params.include_stop_str_in_output and isinstance(delta.stop_reason, str):
                object.__setattr__(delta, "text", delta.text + delta.stop_reason)
            yield delta


def complete(**fields):
    body = posted(COMPLETE, {"prompt": "x", **fields}, Ending(), compat="fastdeploy").json()
    [choice] = body["choices"]
    return choice["text"], choice["finish_reason"], body["usage"]["completion_tokens"]


@pytest.mark.parametrize(
    ("fields", "text", "finish", "count"),
    [
        ({"max_tokens": 5}, ANSWER[:4], "length", 5),
        ({"max_tokens": 1}, "", "length", 1),
        ({"max_tokens": len(ANSWER) + 1}, ANSWER, "stop", len(ANSWER)),
        ({"max_tokens": 100, "stop": " cap"}, "Paris is the cap", "stop", len("Paris is the") + 1),
        ({"max_tokens": 5, "include_stop_str_in_output": True}, ANSWER[:4] + "\0", "length", 5),
        ({"max_tokens": 100, "include_stop_str_in_output": True}, ANSWER + "\0", "stop", len(ANSWER)),
    ],
)
def test_tokens_and_stops(fields, text, finish, count):
    assert complete(**fields) == (text, finish, count)


def test_statuses():
    async def use(web):
        return [
            (await web.post(path, json=body, headers={"x-api-key": "k"}))
            for path, body in (
                (COMPLETE, {"prompt": 3}),
                (COMPLETE, {"prompt": "x", "temperature": -1}),
                (COMPLETE, {"prompt": "x", "model": "other"}),
                (COMPLETE, {"prompt": "x" * 600}),
                (COMPLETE, {"prompt": "x", "cache_salt": "refuse=429"}),
                (COMPLETE, {"prompt": "x", "cache_salt": "hold_after=0"}),
                (CHAT, {"model": "default", "messages": [{"role": "user", "content": "hi"}]}),
            )
        ] + [await web.post(COMPLETE, json={})]

    section = {"compat": "fastdeploy", "api_key": ("k",), "max_waiting_time": 0.01, "max_concurrency": 7}
    answers = asked(web_client, FakeService(), use, **section)
    assert [answer.status_code for answer in answers] == [400, 500, 500, 500, 429, 500, 200, 401]
    wrong, value, model, long, many, late, _, unknown = (answer.json() for answer in answers)
    assert wrong["error"]["code"] == "invalid_value"
    assert (value["error"]["type"], value["error"]["param"]) == ("invalid_request_error", "temperature")
    assert (model["error"]["code"], long["error"]["code"]) == ("model_not_support", "context_length_exceeded")
    assert many == {"detail": "Too many requests,current max concurrency is 7"}
    assert (late["error"]["type"], late["error"]["code"]) == ("timeout_error", "timeout")
    assert unknown == {"error": "Unauthorized"}


def test_a_malformed_item_is_a_malformed_body():
    body = {"input": [{"type": "function_call", "name": "f", "arguments": "no object"}]}
    answer = posted("/v1/responses", body, FakeService(), compat="fastdeploy")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input")


def test_health_and_models():
    service = FakeService()

    async def use(web):
        owner = (await web.get("/v1/models")).json()["data"][0]["owned_by"]
        service.draining = True
        draining = (await web.get("/health")).status_code
        service.die("it fell")
        return owner, draining, (await web.get("/health")).status_code

    assert asked(web_client, service, use, compat="fastdeploy") == ("FastDeploy", 404, 304)
