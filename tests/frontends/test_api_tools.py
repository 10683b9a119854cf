"""Calls of tools and reasoning through /v1/responses and /v1/messages; the model's words are a script."""

import json

import pytest

from reasoning_parsers.think import Think
from tests.frontends.fake_service import FakeService, FakeTemplate
from tests.frontends.in_process import anthropic_client, asked, openai_client, posted
from tool_parsers.tagged import Tagged

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
SAID = '<think>\nIt may.\n</think>\n\nI look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
FUNCTION = {"type": "function", "name": "weather", "description": "Of a city.", "parameters": CITY}
TOOL = {"name": "weather", "description": "Of a city.", "input_schema": CITY}
USER = [{"role": "user", "content": "Will it rain?"}]


class Template(FakeTemplate):
    def __init__(self):
        self.seen = []

    def render(self, messages, **kwargs):
        self.seen.append((messages, kwargs))
        return super().render(messages, **kwargs)


def service():
    made = FakeService(answer=SAID)
    made.chat_template = Template()
    made.tool_parser, made.reasoning_parser = Tagged(), Think(begins=False)
    return made


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_has_items_of_three_kinds(stream):
    kinds = []

    async def use(client):
        if not stream:
            return await client.responses.create(model="fake", input="Will it rain?", tools=[FUNCTION])
        async with client.responses.stream(model="fake", input="Will it rain?", tools=[FUNCTION]) as events:
            kinds.extend([event.type.removeprefix("response.") async for event in events])
            return await events.get_final_response()

    served = service()
    response = asked(openai_client, served, use)
    thought, message, call = response.output
    assert (thought.type, thought.content[0].text.strip()) == ("reasoning", "It may.")
    assert (message.type, message.content[0].text.strip()) == ("message", "I look.")
    assert (call.type, call.name, json.loads(call.arguments), call.status) == (
        "function_call",
        "weather",
        {"city": "Köln"},
        "completed",
    )
    assert response.status == "completed"
    assert response.usage.output_tokens_details.reasoning_tokens == SAID.index("I look.")
    assert served.chat_template.seen[0][1]["tools"] == [
        {"type": "function", "function": {"name": "weather", "description": "Of a city.", "parameters": CITY}}
    ]
    if stream:
        last_of = [kind for at, kind in enumerate(kinds) if kinds[at + 1 : at + 2] != [kind]]
        assert last_of == [
            "created",
            "in_progress",
            "output_item.added",
            "reasoning_text.delta",
            "reasoning_text.done",
            "output_item.done",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
            "completed",
        ]


def test_calls_and_results_go_back_to_the_template():
    served = service()
    items = [
        {"role": "user", "content": "Will it rain?"},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Köln"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "yes"},
    ]
    assert posted("/v1/responses", {"input": items, "tools": [FUNCTION]}, served).status_code == 200
    blocks = [
        {"role": "user", "content": "Will it rain?"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Köln"}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "yes"}]},
    ]
    body = {"model": "fake", "max_tokens": 99, "messages": blocks, "tools": [TOOL]}
    assert posted("/v1/messages", body, served).status_code == 200
    (first, _), (second, _) = served.chat_template.seen
    assert [dict(message) for message in first] == [dict(message) for message in second]
    assert first[1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Köln"}}
    assert (first[2]["role"], first[2]["tool_call_id"], first[2]["content"]) == ("tool", "c1", "yes")


@pytest.mark.parametrize("stream", [False, True])
def test_a_message_has_blocks_of_three_kinds(stream):
    given = {"model": "fake", "max_tokens": 200, "messages": USER, "tools": [TOOL]}

    async def use(client):
        if not stream:
            return await client.messages.create(**given)
        async with client.messages.stream(**given) as events:
            return await events.get_final_message()

    message = asked(anthropic_client, service(), use)
    thought, text, call = message.content
    assert (thought.type, thought.thinking.strip()) == ("thinking", "It may.")
    assert (text.type, text.text.strip()) == ("text", "I look.")
    assert (call.type, call.name, call.input) == ("tool_use", "weather", {"city": "Köln"})
    assert message.stop_reason == "tool_use"


def test_thoughts_may_be_left_out():
    body = {"model": "fake", "max_tokens": 200, "messages": USER, "tools": [TOOL], "thinking": {"type": "disabled"}}
    kinds = [block["type"] for block in posted("/v1/messages", body, service()).json()["content"]]
    assert kinds == ["text", "tool_use"]


@pytest.mark.parametrize(
    ("choice", "kept_to"),
    [
        ({"type": "any"}, True),
        ({"type": "tool", "name": "weather"}, True),
        ({"type": "auto"}, False),
        ({"type": "none"}, False),
    ],
)
def test_a_call_may_be_demanded(choice, kept_to):
    served = service()
    body = {"model": "fake", "max_tokens": 200, "messages": USER, "tools": [TOOL], "tool_choice": choice}
    assert posted("/v1/messages", body, served).status_code == 200
    assert (served.requests[0][2].grammar is not None) == kept_to
