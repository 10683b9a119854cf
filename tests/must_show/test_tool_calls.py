"""Calls that have to be made, through the official client and a real engine: always made, and their arguments always fit."""

import asyncio
import json

import httpx
import jsonschema
import openai
import pytest

from core.compose import compose
from core.launch import open_service
from frontends.openai_http.app import create_app

FLAGS = [
    *("--model", "random:tiny", "--dtype", "float32", "--device", "cpu", "--threads", "1", "--max-model-len", "1024"),
    *("--max-num-seqs", "8", "--tool-call-parser", "hermes", "--guided-decoding-disable-any-whitespace"),
]
SCHEMAS = {
    "weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 8},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
            "units": {"enum": ["C", "F"]},
        },
        "required": ["city", "units"],
        "additionalProperties": False,
    },
    "stop": {"type": "object", "properties": {}, "additionalProperties": False},
}
TOOLS = [
    {"type": "function", "function": {"name": name, "strict": True, "parameters": schema}} for name, schema in SCHEMAS.items()
]
NAMED = {"type": "function", "function": {"name": "weather"}}
USER = [{"role": "user", "content": "Will it rain?"}]


def check(calls, most):
    assert 1 <= len(calls) <= most
    for call in calls:
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])


async def whole(client, seed, choice, **fields):
    answer = await client.chat.completions.create(
        model="random:tiny", messages=USER, tools=TOOLS, tool_choice=choice, seed=seed, temperature=1, **fields
    )
    [choice] = answer.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    return choice.message.tool_calls


async def streamed(client, seed):
    async with client.chat.completions.stream(
        model="random:tiny", messages=USER, tools=TOOLS, tool_choice="required", seed=seed, temperature=1
    ) as events:
        return (await events.get_final_completion()).choices[0].message.tool_calls


def test_calls_that_have_to_be_made_fit_their_schemas():
    async def run():
        async with open_service(compose(FLAGS)) as service:
            http = httpx.AsyncClient(transport=httpx.ASGITransport(create_app(service)))
            async with openai.AsyncOpenAI(base_url="http://test/v1", api_key="none", http_client=http) as client:
                some = [whole(client, seed, "required") for seed in range(8)]
                one = [whole(client, seed, "required", parallel_tool_calls=False) for seed in range(4)]
                named = [whole(client, seed, NAMED) for seed in range(4)]
                answers = await asyncio.gather(*some, *one, *named, *(streamed(client, seed) for seed in range(4)))
                wrong = {"type": "function", "function": {"name": "f", "parameters": {"type": "nothing"}}}
                fields = {"model": "random:tiny", "messages": USER, "tools": [wrong], "tool_choice": "required"}
                with pytest.raises(openai.BadRequestError) as refused:
                    await client.chat.completions.create(**fields)
                return answers, refused.value

    answers, refused = asyncio.run(run())
    for calls in (*answers[:8], *answers[16:]):
        check(calls, 16)
    for calls in answers[8:16]:
        check(calls, 1)
    assert {call.function.name for calls in answers[12:16] for call in calls} == {"weather"}
    assert {call.function.name for calls in answers[:8] for call in calls} == {"weather", "stop"}
    assert [call.function.name for call in answers[0]] == [call.function.name for call in answers[16]], "one seed, one answer"
    assert refused.param == "tools"
    assert refused.body["message"].startswith("the grammar cannot be used")
