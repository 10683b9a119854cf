"""/v1/messages as the official client uses it, and errors in Anthropic's form."""

import anthropic
import pytest

from tests.frontends.fake_service import ANSWER, FakeService
from tests.frontends.in_process import anthropic_client, asked, posted

HELLO = [{"role": "user", "content": "hi"}]
PROMPT = "user: hi\nassistant: "


def ask(service=None, **fields):
    given = {"model": "fake", "max_tokens": 100, "messages": HELLO} | fields
    return asked(anthropic_client, service or FakeService(), lambda client: client.messages.create(**given))


def test_an_answer_is_a_message_with_its_usage():
    service = FakeService()
    options = {"metadata": {"user_id": "me"}, "system": [{"type": "text", "text": "be brief"}]}
    message = ask(service, extra_body={"temperature": 0.5, "top_p": 0.75, "top_k": 7}, **options)
    assert ([block.text for block in message.content], message.role) == ([ANSWER], "assistant")
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    prompt = f"system: be brief\n{PROMPT}"
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (len(prompt) - 2, 2)
    assert message.usage.output_tokens == len(ANSWER)
    [(_, ids, params, *_)] = service.requests
    assert service.tokenizer.decode(ids) == prompt
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens) == (0.5, 0.75, 7, 100)


@pytest.mark.parametrize(
    ("fields", "text", "reason", "sequence"),
    [
        ({"max_tokens": 5}, "Paris", "max_tokens", None),
        ({"stop_sequences": [" cap", "z"]}, "Paris is the", "stop_sequence", " cap"),
    ],
)
def test_why_it_stopped(fields, text, reason, sequence):
    message = ask(**fields)
    assert (message.content[0].text, message.stop_reason, message.stop_sequence) == (text, reason, sequence)


def test_a_stream_has_the_official_events():
    async def use(client):
        async with client.messages.stream(model="fake", max_tokens=5, messages=HELLO) as stream:
            return [event.type async for event in stream], await stream.get_final_message()

    kinds, final = asked(anthropic_client, FakeService(), use)
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta", "text"}
    assert (final.content[0].text, final.stop_reason) == ("Paris", "max_tokens")
    assert (final.usage.input_tokens, final.usage.output_tokens) == (len(PROMPT) - 2, 5)


def test_what_the_assistant_has_begun_is_gone_on_with():
    service = FakeService()
    ask(service, messages=[*HELLO, {"role": "assistant", "content": "Par"}])
    assert service.tokenizer.decode(service.requests[0][1]) == "user: hi\nassistant: Par"


def test_tokens_are_counted():
    count = asked(
        anthropic_client, FakeService(), lambda client: client.messages.count_tokens(model="fake", messages=HELLO, system="s")
    )
    assert count.input_tokens == len("system: s\n" + PROMPT)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"max_tokens": None}, "max_tokens: input should be a valid integer"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"max_tokens": 500}, "the prompt has 20 tokens and max_tokens asks for 500 more"),
        ({"messages": []}, "messages: list should have at least 1 item"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role: input should be 'user', 'assistant' or"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "messages[0].content[0] is of type 'image': this model takes text only",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text: must be a string"),
        ({"system": [{"type": "image"}]}, "system[0] is of type 'image'"),
        ({"stop_sequences": [""]}, "stop_sequences: each stop string must be a non-empty string"),
        ({"temperature": -1}, "temperature must be a number in [0, 100], got -1"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "this server cannot tell thinking from an answer"),
        ({"n": 2}, "n is not supported by this route: /v1/chat/completions has it"),
        ({"tool_choice": {"type": "all"}}, "tool_choice.type is auto, any, tool or none"),
    ],
)
def test_what_is_refused(fields, told):
    service = FakeService()
    body = {"model": "fake", "max_tokens": 100, "messages": HELLO} | fields
    response = posted("/v1/messages", body, service)
    assert response.status_code == 400
    assert set(response.json()) == {"type", "error"}
    error = response.json()["error"]
    assert (response.json()["type"], error["type"]) == ("error", "invalid_request_error")
    assert error["message"].removeprefix("max_tokens: ").startswith(told.removeprefix("max_tokens: "))
    assert service.requests == []


def test_errors_are_the_clients_own_kinds():
    with pytest.raises(anthropic.NotFoundError, match="the model 'claude' is not served here") as missing:
        ask(model="claude")
    assert missing.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.RateLimitError) as busy:
        ask(extra_body={"cache_salt": "refuse=429"})
    assert busy.value.response.headers["retry-after"] in ("1", "2")
    wrong = posted("/v1/messages", {}, FakeService(), {"x-api-key": "no"}, api_key=("yes",))
    assert (wrong.status_code, wrong.json()["error"]["type"]) == (401, "authentication_error")
    counted = {"model": "fake", "messages": HELLO}
    right = posted("/v1/messages/count_tokens", counted, FakeService(), {"x-api-key": "yes"}, api_key=("yes",))
    assert right.json() == {"input_tokens": len(PROMPT)}


def test_an_error_in_mid_stream_is_the_last_event():
    async def use(client):
        script = {"cache_salt": "error_after=2"}
        stream = await client.messages.create(model="fake", max_tokens=9, messages=HELLO, stream=True, extra_body=script)
        return [event async for event in stream]

    with pytest.raises(anthropic.APIError, match="the kernel overflowed"):
        asked(anthropic_client, FakeService(), use)
