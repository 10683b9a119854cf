"""/v1/responses as the official client uses it, and what it refuses."""

import json

import openai
import pytest

from core.interfaces.request import Grammar
from tests.frontends.fake_service import ANSWER, FakeService
from tests.frontends.in_process import asked, openai_client, posted

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def respond(service=None, **fields):
    return asked(openai_client, service or FakeService(), lambda client: client.responses.create(model="fake", **fields))


def test_an_answer_is_a_message_with_its_usage():
    service = FakeService()
    response = respond(
        service, input="hi", instructions="be brief", temperature=0.5, metadata={"a": "b"}, user="me", store=True
    )
    assert (response.output_text, response.status, response.store) == (ANSWER, "completed", False)
    [message] = response.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    prompt = "system: be brief\nuser: hi\nassistant: "
    usage = response.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (
        len(prompt),
        len(ANSWER),
        len(prompt) + len(ANSWER),
    )
    assert usage.input_tokens_details.cached_tokens == 2
    assert (response.instructions, response.metadata, response.temperature) == ("be brief", {"a": "b"}, 0.5)
    assert response.id.startswith("resp_")
    [(_, ids, params, *_)] = service.requests
    assert (service.tokenizer.decode(ids), params.temperature, params.max_tokens) == (prompt, 0.5, None)


def test_a_conversation_of_items_becomes_a_chat():
    service = FakeService()
    items = [
        {"role": "developer", "content": "be brief"},
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}],
        },
        {"type": "reasoning", "id": "rs", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "c", "annotations": []}]},
        {"role": "user", "content": "d"},
    ]
    respond(service, input=items)
    assert (
        service.tokenizer.decode(service.requests[0][1]) == "system: be brief\nuser: a\nb\nassistant: c\nuser: d\nassistant: "
    )


def test_the_events_come_in_the_official_order():
    async def use(client):
        async with client.responses.stream(model="fake", input="hi", max_output_tokens=5) as stream:
            return [event async for event in stream]

    events = asked(openai_client, FakeService(), use)
    final = events[-1].response
    kinds = [event.type for event in events]
    assert [kind for at, kind in enumerate(kinds) if kinds[at - 1] != kind or at == 0] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == ANSWER[:5]
    assert (final.output_text, final.incomplete_details.reason) == (ANSWER[:5], "max_output_tokens")
    assert final.usage.output_tokens == 5


def test_a_stream_that_ends_by_itself_is_completed():
    async def use(client):
        async with client.responses.stream(model="fake", input="hi") as stream:
            return await stream.get_final_response()

    final = asked(openai_client, FakeService(), use)
    assert (final.output_text, final.status) == (ANSWER, "completed")


def test_a_failure_in_mid_stream_is_a_failed_response():
    async def use(client):
        script = {"cache_salt": "error_after=2"}
        return [event async for event in await client.responses.create(model="fake", input="x", stream=True, extra_body=script)]

    last = asked(openai_client, FakeService(), use)[-1]
    assert (last.type, last.response.status) == ("response.failed", "failed")
    assert (last.response.error.code, last.response.error.message) == ("server_error", "the kernel overflowed")


def test_a_schema_reaches_the_engine_and_logprobs_come_back():
    service = FakeService()
    text = {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}}
    response = respond(
        service, input="hi", text=text, top_logprobs=1, include=["message.output_text.logprobs"], max_output_tokens=1
    )
    assert service.requests[0][2].grammar == Grammar("json_schema", json.dumps(SCHEMA))
    [shown] = response.output[0].content[0].logprobs
    assert (shown.token, shown.logprob, [top.token for top in shown.top_logprobs]) == ("P", -0.25, ["P"])
    assert response.text.format.type == "json_schema"


def test_how_hard_to_think_is_for_the_template():
    service = FakeService()
    given = {}
    render = service.chat_template.render
    service.chat_template.render = lambda messages, **fields: given.update(fields) or render(messages, **fields)
    response = respond(service, input="hi", reasoning={"effort": "low"})
    assert (given["reasoning_effort"], response.reasoning.effort) == ("low", "low")


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "input", "input: field required"),
        ({"input": []}, "input", "input: must be a string or a list of items that is not empty"),
        ({"input": ["x"]}, "input[0]", "input[0]: must be an object"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role", "input[0].role: must be user, assistant"),
        ({"input": [{"role": "user"}]}, "input[0].content", "input[0].content: must be a string or a list of parts"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0]",
            "input[0].content[0] is of type 'input_image': this model takes text only",
        ),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "input[0]: this server keeps no items"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens", "max_output_tokens must be at least 1, got 0"),
        ({"input": "x", "max_output_tokens": 499}, "max_output_tokens", "the prompt has 19 tokens and max_output_tokens asks"),
        ({"input": "x" * 600}, "input", "the prompt has 618 tokens"),
        (
            {"input": "x", "text": {"format": {"type": "xml"}}},
            "text",
            "text.format is text, json_object or json_schema, not 'xml'",
        ),
        ({"input": "x", "background": True}, "background", "background is not supported by this server"),
        (
            {"input": "x", "previous_response_id": "resp_1"},
            "previous_response_id",
            "there is no response 'resp_1': this server keeps none; send the whole conversation as input",
        ),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0]", "tools[0] is of type 'web_search'"),
        ({"input": "x", "n": 2}, "n", "n is not supported by this route: /v1/chat/completions has it"),
        ({"input": "x", "prompt_logprobs": 0}, "prompt_logprobs", "prompt_logprobs is not supported by this route"),
        ({"input": "x", "return_token_ids": True}, "return_token_ids", "return_token_ids is not supported by this route"),
        ({"input": "x", "truncation": "middle"}, "truncation", "truncation is disabled or auto, not 'middle'"),
    ],
)
def test_what_is_refused(body, param, message):
    service = FakeService()
    response = posted("/v1/responses", body, service)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert error["message"].startswith(message)
    assert service.requests == []


def test_no_response_is_kept():
    with pytest.raises(openai.NotFoundError, match="there is no response 'resp_1': this server keeps none"):
        asked(openai_client, FakeService(), lambda client: client.responses.retrieve("resp_1"))
