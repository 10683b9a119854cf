"""What a prompt is to the model: /v1/embeddings, prompt_logprobs, and echo with logprobs."""

import asyncio
import base64
import json
import struct
from dataclasses import replace

import pytest

from core.errors import RequestError
from core.interfaces.frontend import Service, TokenInfo, TopToken
from tests.frontends.fake_service import FakeService
from tests.frontends.in_process import asked, openai_client, posted, web_client

EMBED, CHAT, COMPLETE = "/v1/embeddings", "/v1/chat/completions", "/v1/completions"


class Reading(FakeService):
    """A vector is the prompt's length and pooling; a token's log-probability is minus its place."""

    async def embed(self, ids, *, pooling="last"):
        if len(ids) > 50:
            raise RequestError("the prompt has too many tokens", param="prompt", code="context_length_exceeded")
        return [float(len(ids)), 0.5 if pooling == "mean" else 0.25]

    async def score(self, ids, most=0):
        top = tuple(TopToken(97 + rank, chr(97 + rank), b"", -0.5) for rank in range(most))
        return [TokenInfo(token, chr(token), b"", -float(place), 1, top) for place, token in enumerate(ids[1:], 1)]


def test_the_official_client_reads_vectors():
    async def use(client):
        one = await client.embeddings.create(model="fake", input="hi")
        many = await client.embeddings.create(model="fake", input=["a", "bcd"], extra_body={"pooling": "mean"})
        ids = await client.embeddings.create(model="fake", input=[[7, 8], [9]], encoding_format="float")
        return one, many, ids

    one, many, ids = asked(openai_client, Reading(), use)
    assert one.data[0].embedding == [3.0, 0.25]
    assert [(each.index, each.embedding) for each in many.data] == [(0, [2.0, 0.5]), (1, [4.0, 0.5])]
    assert [each.embedding for each in ids.data] == [[2.0, 0.25], [1.0, 0.25]]
    assert (many.usage.prompt_tokens, many.usage.total_tokens, many.model) == (6, 6, "fake")


def test_base64_is_float32_little_endian():
    [entry] = posted(EMBED, {"input": "hi", "encoding_format": "base64"}, Reading()).json()["data"]
    assert struct.unpack("<2f", base64.b64decode(entry["embedding"])) == (3.0, 0.25)


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "input", "input: field required"),
        ({"input": []}, "input", "input: must not be empty"),
        ({"input": ["x"] * 2049}, "input", "input has 2049 texts; at most 2048 are taken"),
        ({"input": "x" * 60}, "input", "the prompt has too many tokens"),
        ({"input": "x", "dimensions": 8}, "dimensions", "dimensions is not supported: this model's vectors were not trained"),
        ({"input": "x", "encoding_format": "hex"}, "encoding_format", "encoding_format: input should be 'float' or 'base64'"),
    ],
)
def test_what_is_refused(body, param, message):
    response = posted(EMBED, body, Reading())
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert response.json()["error"]["message"].startswith(message)


def test_a_service_without_them_says_so():
    class Bare(FakeService):
        embed = Service.embed

    refused = posted(EMBED, {"input": "x"}, Bare())
    assert (refused.status_code, refused.json()["error"]["message"]) == (400, "this server gives no embeddings")


def test_an_echo_has_its_own_logprobs_before_the_answers():
    body = {"prompt": "xyz", "echo": True, "logprobs": 2, "max_tokens": 2}
    [choice] = posted(COMPLETE, body, Reading()).json()["choices"]
    assert choice["text"] == "xyzPa"
    assert choice["logprobs"] == {
        "tokens": ["x", "y", "z", "P", "a"],
        "token_logprobs": [-1.0, -2.0, -3.0, -0.25, -0.25],
        "top_logprobs": [
            *({"a": -0.5, "b": -0.5, token: -place} for place, token in enumerate("xyz", 1)),
            {"P": -0.25, "Q": -1.25},
            {"a": -0.25, "b": -1.25},
        ],
        "text_offset": [0, 1, 2, 3, 4],
    }


def test_the_first_of_given_tokens_has_none():
    body = {"prompt": [120, 121], "echo": True, "logprobs": 0, "max_tokens": 1}
    [choice] = posted(COMPLETE, body, Reading()).json()["choices"]
    assert choice["logprobs"]["token_logprobs"] == [None, -1.0, -0.25]
    assert choice["logprobs"]["top_logprobs"] is None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "asked_of"), [(COMPLETE, {"prompt": "x"}), (CHAT, {"messages": [{"role": "user", "content": ""}]})]
)
def test_prompt_logprobs(path, asked_of, stream):
    body = {**asked_of, "prompt_logprobs": 1, "max_tokens": 1, "stream": stream, "n": 2}
    response = posted(path, body, Reading())
    if stream:
        assert response.text.count('"prompt_logprobs"') == 2
        return
    for choice in response.json()["choices"]:
        first, second, *_ = choice["prompt_logprobs"]
        assert first is None
        assert second["97"] == {"logprob": -0.5, "rank": 1, "decoded_token": "a"}
        assert len(second) == 2
    refused = posted(path, {**asked_of, "prompt_logprobs": 21}, Reading()).json()["error"]
    assert (refused["param"], refused["message"]) == ("prompt_logprobs", "prompt_logprobs must lie in [0, 20], got 21")


def test_a_prompt_that_is_scored_and_not_gone_on_with():
    """As OpenAI's completions and evaluation harnesses do it: nothing is generated, and no engine asked to."""
    served = Reading()
    body = {"prompt": [[120, 121], [122, 120, 121]], "echo": True, "logprobs": 1, "max_tokens": 0}
    answer = posted(COMPLETE, body, served).json()
    assert [choice["text"] for choice in answer["choices"]] == ["xy", "zxy"]
    assert [choice["logprobs"]["token_logprobs"] for choice in answer["choices"]] == [[None, -1.0], [None, -1.0, -2.0]]
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (5, 0, 5)

    streamed = posted(COMPLETE, {**body, "n": 2, "stream": True, "stream_options": {"include_usage": True}}, served).text
    *chunks, last = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    assert [choice["index"] for chunk in chunks for choice in chunk["choices"] if choice["text"]] == [0, 1, 2, 3]
    assert [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]] == [None] * 4 + ["length"] * 4
    assert last["usage"]["completion_tokens"] == 0

    [told] = posted(COMPLETE, {"prompt": "xy", "prompt_logprobs": 1, "max_tokens": 0}, served).json()["choices"]
    assert (told["text"], len(told["prompt_logprobs"])) == ("", 3)
    assert posted(COMPLETE, {"prompt": "xy", "echo": True, "max_tokens": 0}, served).json()["choices"][0]["text"] == "xy"
    refused = posted(COMPLETE, {"prompt": "xy", "max_tokens": 0}, served).json()["error"]["message"]
    assert refused == "max_tokens must be at least 1, got 0; with echo or prompt_logprobs it may be 0"
    assert not served.requests


class Held(Reading):
    """Reads for as long as ``done`` is not set."""

    def __init__(self):
        super().__init__()
        self.done, self.begun = asyncio.Event(), asyncio.Event()

    async def embed(self, ids, *, pooling="last"):
        self.begun.set()
        await self.done.wait()
        return await super().embed(ids, pooling=pooling)

    async def score(self, ids, most=0):
        self.begun.set()
        await self.done.wait()
        return await super().score(ids, most)


HELD = [(EMBED, {"input": "x"}), (COMPLETE, {"prompt": "xy", "prompt_logprobs": 1, "max_tokens": 1, "request_id": "a"})]


@pytest.mark.parametrize(("path", "body"), HELD)
def test_what_is_read_is_a_call_in_flight_and_a_pause_may_wait_for_it(path, body):
    service = Held()

    async def use(web):
        call = asyncio.create_task(web.post(path, json=body))
        await service.begun.wait()
        load = (await web.get("/load")).json()["server_load"]
        refused = await web.post(COMPLETE, json={"prompt": "x"})
        pausing = asyncio.create_task(web.post("/v1/pause?mode=wait"))
        while (await web.get("/ready")).status_code == 200:
            await asyncio.sleep(0)
        waited = not pausing.done()
        service.done.set()
        await call
        return load, refused.status_code, waited, (await pausing).status_code, (await web.get("/load")).json()["server_load"]

    assert asked(web_client, service, use, max_concurrency=1) == (1, 429, True, 200, 0)


@pytest.mark.parametrize(("path", "body"), HELD)
def test_what_is_read_can_be_aborted(path, body):
    service = Held()

    async def use(web):
        call = asyncio.create_task(web.post(path, json=body))
        await service.begun.wait()
        told = (await web.post("/v1/abort_requests", json={"abort_all": True})).json()["result"]["aborted"]
        return told, await call, (await web.get("/load")).json()["server_load"]

    [told], ended, load = asked(web_client, service, use)
    assert (told["output_token_count"], load) == (0, 0)
    assert ended.status_code == 409
    assert ended.json()["error"]["message"] == "the call was aborted while its prompt was read"


def test_no_more_likely_tokens_than_there_are():
    service = Reading()
    service.card = replace(service.card, vocab=200)
    body = {"prompt": [1, 2], "max_tokens": 1}
    assert posted(COMPLETE, {**body, "prompt_logprobs": 200}, service, max_logprobs=1024).status_code == 200
    refused = posted(COMPLETE, {**body, "prompt_logprobs": 201}, service, max_logprobs=1024)
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == "prompt_logprobs must be at most 200, got 201"
