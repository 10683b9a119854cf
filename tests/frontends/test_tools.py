"""Tools and reasoning through the official client, the model's words being a script; and once with a real engine."""

import asyncio
import json
from contextlib import asynccontextmanager

import httpx
import openai
import pytest
from starlette.testclient import TestClient

from core.errors import RequestError
from core.interfaces.parsers import Tool
from frontends.openai_http.app import create_app
from reasoning_parsers.think import Think
from tests.frontends.fake_service import BOS, FakeService, FakeTemplate, FakeTokenizer
from tool_parsers.pythonic import Pythonic
from tool_parsers.tagged import Tagged

USER = [{"role": "user", "content": "Will it rain?"}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}


def tool(name, parameters=None, **fields):
    return {"type": "function", "function": {"name": name, "parameters": parameters, **fields}}


def allowed(mode, *names):
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [tool(name) for name in names]}}


TOOLS = [tool("weather", CITY, description="Of a city."), tool("time")]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
TWO = f'I look.\n{CALL}\n<tool_call>\n{{"name": "time", "arguments": {{}}}}\n</tool_call>'
THOUGHT = "<think>\nIt may.\n</think>\n\n"


class Template(FakeTemplate):
    def __init__(self):
        self.seen = []

    def render(self, messages, *, enable_thinking=True, **kwargs):
        self.seen.append((messages, kwargs))
        return super().render(messages, **kwargs) + ("" if enable_thinking else "<think>\n\n</think>\n\n")


def service(answer, *, tools=Tagged, reasoning=None):
    made = FakeService(answer=answer)
    made.chat_template = Template()
    made.tool_parser = tools() if tools else None
    made.reasoning_parser = reasoning
    return made


@asynccontextmanager
async def client(served):
    transport = httpx.ASGITransport(create_app(served))
    async with (
        httpx.AsyncClient(transport=transport) as http,
        openai.AsyncOpenAI(base_url="http://test/v1", api_key="none", max_retries=0, http_client=http) as made,
    ):
        yield made


def ask(served, **fields):
    async def run():
        async with client(served) as made:
            return await made.chat.completions.create(model="fake", messages=fields.pop("messages", USER), **fields)

    return asyncio.run(run())


def stream(served, **fields):
    async def run():
        async with client(served) as made:
            chunks = await made.chat.completions.create(model="fake", messages=USER, stream=True, **fields)
            return [chunk async for chunk in chunks]

    return asyncio.run(run())


def grammar(served):
    """The form that the last request's output was kept to."""
    asked = served.requests[-1][2].grammar
    return asked and (asked.kind, json.loads(asked.text))


def test_calls_are_part_of_the_message():
    served = service(TWO)
    [choice] = ask(served, tools=TOOLS).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "I look."
    assert [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls] == [
        ("weather", {"city": "Köln"}),
        ("time", {}),
    ]
    ids = {call.id for call in choice.message.tool_calls}
    assert len(ids) == 2
    assert all(each.startswith("call_") for each in ids)
    assert grammar(served) is None
    assert [each["function"]["name"] for each in served.chat_template.seen[0][1]["tools"]] == ["weather", "time"]


def test_a_stream_tells_id_and_name_first_and_then_the_arguments():
    chunks = stream(service(TWO), tools=TOOLS, extra_body={"cache_salt": "delay=0.001"})
    *_, last = chunks
    assert (last.choices[0].finish_reason, last.choices[0].delta.tool_calls) == ("tool_calls", None)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "I look."
    deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    for index, (name, arguments) in enumerate([("weather", '{"city": "Köln"}'), ("time", "{}")]):
        first, *rest = [delta for delta in deltas if delta.index == index]
        assert (first.function.name, first.type) == (name, "function")
        assert first.id.startswith("call_")
        assert all(delta.id is None and delta.function.name is None for delta in rest)
        assert first.function.arguments + "".join(delta.function.arguments for delta in rest) == arguments
    assert len(deltas) > 10, "arguments are told as they come"


def test_the_clients_own_helpers_read_the_stream():
    """What the client makes of the chunks, with the other transport: synchronous."""
    with TestClient(create_app(service(THOUGHT + TWO, reasoning=Think(begins=False)))) as http:
        made = openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=http)
        strict = [tool("weather", CITY, strict=True)]
        with made.chat.completions.stream(model="fake", messages=USER, tools=strict) as events:
            final = events.get_final_completion()
        [choice] = final.choices
        assert [call.function.parsed_arguments for call in choice.message.tool_calls] == [{"city": "Köln"}, None]
        assert choice.finish_reason == "tool_calls"


def test_what_is_no_call_is_told_at_the_end():
    for words in ("It may.", "I write <tool_call>", '<tool_call>{"name": 1}'):
        served = service(words)
        assert ask(served, tools=TOOLS).choices[0].message.content == words
        chunks = stream(served, tools=TOOLS)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == words
        assert chunks[-1].choices[0].finish_reason == "stop"


CUT = [  # (what the model says, how much of it, what of that is for the reader)
    (f"I look.\n{CALL}", len("I look.\n<tool_ca"), "I look."),
    (f"I look.\n{CALL}", len('I look.\n<tool_call>\n{"name": "wea'), "I look."),
    (f"{THOUGHT}{CALL}", len("<thi"), ""),
    (f"{THOUGHT}{CALL}", len(f"{THOUGHT}<too"), ""),
    (f"{THOUGHT}One, two, three.", len(f"{THOUGHT}One, t"), "One, t"),
]
SAID = {  # by route: a body, the text of a whole answer, that of an event
    "/v1/chat/completions": (
        lambda most: {"messages": USER, "max_tokens": most, "tools": TOOLS},
        lambda whole: whole["choices"][0]["message"]["content"],
        lambda event: event["choices"][0]["delta"].get("content", ""),
    ),
    "/v1/responses": (
        lambda most: {"input": "?", "max_output_tokens": most, "tools": [{"type": "function", **TOOLS[0]["function"]}]},
        lambda whole: "".join(
            part["text"] for item in whole["output"] if item["type"] == "message" for part in item["content"]
        ),
        lambda event: event["delta"] if event["type"] == "response.output_text.delta" else "",
    ),
    "/v1/messages": (
        lambda most: {"model": "fake", "messages": USER, "max_tokens": most, "tools": [{"name": "weather"}]},
        lambda whole: "".join(block["text"] for block in whole["content"] if block["type"] == "text"),
        lambda event: event["delta"].get("text", "") if event["type"] == "content_block_delta" else "",
    ),
}


@pytest.mark.parametrize(("words", "most", "left"), CUT)
@pytest.mark.parametrize("ends_as", ["length", "abort"])
def test_half_a_mark_that_was_cut_off_is_nothing_to_read(words, most, left, ends_as):
    served = service(words, reasoning=Think(begins=False))
    served.ends_as = ends_as
    with TestClient(create_app(served)) as http:
        for path, (body, of_whole, of_event) in SAID.items():
            assert of_whole(http.post(path, json=body(most)).json()) == left
            lines = http.post(path, json={**body(most), "stream": True}).text.splitlines()
            events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
            assert "".join(map(of_event, events)) == left


def test_one_call_where_no_more_are_wanted():
    choice = ask(service(TWO), tools=TOOLS, parallel_tool_calls=False).choices[0]
    assert [call.function.name for call in choice.message.tool_calls] == ["weather"]


def test_tools_that_may_not_be_called_are_not_told_of():
    served = service("It may.", tools=None)
    assert ask(served, tools=TOOLS, tool_choice="none").choices[0].message.content == "It may."
    assert "tools" not in served.chat_template.seen[0][1]


def test_choices_have_calls_of_their_own():
    answer = ask(service(CALL), tools=TOOLS, n=2)
    first, second = (choice.message.tool_calls[0] for choice in answer.choices)
    assert first.id != second.id
    assert first.function == second.function


@pytest.mark.parametrize(
    ("fields", "names", "most"),
    [
        ({"tool_choice": "required"}, ["weather", "time"], 16),
        ({"tool_choice": "required", "parallel_tool_calls": False}, ["weather", "time"], None),
        ({"tool_choice": {"type": "function", "function": {"name": "time"}}}, ["time"], None),
    ],
)
def test_calls_that_have_to_be_made_are_a_form(fields, names, most):
    served = service(CALL)
    ask(served, tools=TOOLS, **fields)
    kind, form = grammar(served)
    assert kind == "parts"
    [calls] = form
    if most is not None:
        assert (calls["least"], calls["most"]) == (1, most)
        calls = calls["repeat"][0]
    for each, name in zip(calls["any_of"], names, strict=True):
        assert each[1]["text"] == f'\n{{"name": "{name}", "arguments": '
        assert each[2] == {"json_schema": CITY if name == "weather" else {"type": "object"}}


def test_strict_functions_are_a_form_in_free_text():
    served = service(CALL)
    ask(served, tools=[tool("weather", CITY, strict=True), tool("time", CITY)])
    _, [repeated, rest] = grammar(served)
    assert rest == {"anything": True}
    assert repeated["repeat"][0] == {"until": "<tool_call>"}
    assert [each[1]["json_schema"] for each in repeated["repeat"][1]["any_of"]] == [CITY, {"type": "object"}]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize("mode", ["auto", "required"])
def test_of_all_tools_that_it_is_told_of_the_model_may_call_some(path, mode):
    served = service(CALL)
    body = {"messages": USER, "tools": TOOLS, "tool_choice": allowed(mode, "time")}
    if path == "/v1/responses":
        choice = {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": "time"}]}
        body = {"input": USER, "tools": [{"type": "function", **each["function"]} for each in TOOLS], "tool_choice": choice}
    with TestClient(create_app(served)) as http:
        http.post(path, json=body).raise_for_status()
    [(_, given)] = served.chat_template.seen
    assert [each["function"]["name"] for each in given["tools"]] == ["weather", "time"]
    time = Tool("time", "", {"type": "object"})
    form = Tagged().form([time], several=True) if mode == "required" else Tagged().strict_form([time], several=True)
    assert grammar(served) == ("parts", form)


def test_a_form_and_tools_are_one_or_the_other():
    served = service("{}")
    ask(served, tools=TOOLS, response_format={"type": "json_object"})
    _, [either] = grammar(served)
    answer, calls = either["any_of"]
    assert answer == [{"json_schema": {"type": "object"}}]
    assert calls == Tagged().form(_tools(), several=True)


def _tools():
    return [Tool("weather", "Of a city.", CITY), Tool("time")]


def test_a_conversation_goes_on_after_its_calls():
    served = service("At nine.")
    made = ask(service(TWO), tools=TOOLS).choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "rain"} for call in made.tool_calls]
    ask(served, messages=[*USER, made, *results], tools=TOOLS)
    _, said, rain, _ = served.chat_template.seen[0][0]
    assert said["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Köln"}}
    assert (rain["role"], rain["tool_call_id"]) == ("tool", made.tool_calls[0].id)


def test_calls_and_results_may_have_their_older_names():
    served = service("At nine.")
    said = {"role": "assistant", "content": None, "function_call": {"name": "time", "arguments": '{"zone": 1}'}}
    ask(served, messages=[*USER, said, {"role": "function", "name": "time", "content": "nine"}])
    _, called, told = served.chat_template.seen[0][0]
    assert called["tool_calls"][0]["function"] == {"name": "time", "arguments": {"zone": 1}}
    assert told == {"role": "tool", "content": "nine", "name": "time"}


@pytest.mark.parametrize("begins", [False, True])
def test_reasoning_is_a_field_of_its_own(begins):
    served = service(THOUGHT + "It may not.", reasoning=Think(begins=begins))
    message = ask(served).choices[0].message
    assert (message.reasoning_content, message.reasoning, message.content) == ("It may.", "It may.", "It may not.")
    deltas = [chunk.choices[0].delta for chunk in stream(served, extra_body={"cache_salt": "delay=0.001"})]
    assert "".join(getattr(delta, "reasoning_content", "") for delta in deltas) == "It may."
    assert "".join(delta.content or "" for delta in deltas) == "It may not."
    assert sum(bool(getattr(delta, "reasoning", "")) for delta in deltas) > 1, "reasoning is told as it comes"
    hidden = ask(served, extra_body={"include_reasoning": False}).choices[0].message
    assert (hidden.content, hidden.reasoning_content) == ("It may not.", None)


def test_usage_tells_how_much_was_reasoning():
    """A character is a token. Of a cut-off answer all may be; of one without reasoning none is."""
    for script in ("", "delay=0.001", "chunk=7", "chunk=1000"):
        served, options = service(THOUGHT + "It may not.", reasoning=Think(begins=False)), {"include_usage": True}
        answer = ask(served, n=2, extra_body={"cache_salt": script})
        *_, streamed = stream(served, n=2, stream_options=options, extra_body={"cache_salt": script})
        for usage in (answer.usage, streamed.usage):
            assert usage.completion_tokens_details.reasoning_tokens == 2 * len(THOUGHT)
    assert ask(served, max_tokens=11).usage.completion_tokens_details.reasoning_tokens == 11
    assert ask(service("No.", reasoning=Think(begins=False))).usage.completion_tokens_details.reasoning_tokens == 0
    assert ask(service("No.")).usage.completion_tokens_details is None


def test_a_prompt_without_thinking_has_an_answer_only():
    served = service("It may not.", reasoning=Think(begins=True))
    fields = {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}
    message = ask(served, **fields).choices[0].message
    assert (message.content, message.reasoning_content) == ("It may not.", None)
    assert ask(served).choices[0].message.reasoning_content == "It may not."
    ask(served, response_format={"type": "json_object"}, **fields)
    assert served.requests[-1][2].grammar.kind == "json_object"


@pytest.mark.parametrize(("mark", "fields"), [("</think>", {}), ("<tool_call>", {"tools": TOOLS}), ("</s>", {"tools": TOOLS})])
def test_marks_that_are_control_tokens_stay_in_the_text(mark, fields):
    class Controls(FakeTokenizer):
        def encode(self, text, **kwargs):
            return [BOS] if text == mark else super().encode(text, **kwargs)

    served = service("It may.", reasoning=Think(begins=False))
    served.tokenizer = Controls()
    ask(served, **fields)
    assert served.requests[-1][2].skip_special_tokens is (mark == "</s>")


def test_forms_hold_from_the_end_of_the_reasoning_on():
    served = service("</think>{}", reasoning=Think(begins=True))
    schema = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
    before = [{"until": "</think>"}, {"regex": r"\n{0,3}"}]
    for fields, form in (
        ({"response_format": schema}, [{"json_schema": CITY}]),
        ({"extra_body": {"guided_choice": ["a", "b"]}}, [{"any_of": [[{"text": "a"}], [{"text": "b"}]]}]),
        ({"extra_body": {"guided_regex": "a+"}}, [{"regex": "a+"}]),
        ({"tools": TOOLS, "tool_choice": "required"}, Tagged().form(_tools(), several=True)),
    ):
        ask(served, **fields)
        assert grammar(served) == ("parts", [*before, *form])


BROKEN = tool("weather") | {"type": "retrieval"}
REFUSED = [
    (
        {"tools": TOOLS},
        {"tools": None},
        "tools",
        "this server reads no calls of tools in what its model writes: it would have to be started with "
        "--tool-call-parser NAME (--list-plugins shows which there are)",
    ),
    ({"tools": [{"type": "function"}]}, {}, "tools[0].function", "tools[0].function: field required"),
    ({"tools": [BROKEN]}, {}, "tools[0].type", "tools[0].type: input should be 'function'"),
    ({"tools": [tool("a b")]}, {}, "tools[0].function.name", "tools[0].function.name: string should match pattern"),
    ({"tools": [tool("a"), tool("a")]}, {}, "tools", "two tools are named 'a'"),
    ({"tool_choice": "required"}, {}, "tool_choice", "tool_choice wants a call, and there are no tools"),
    ({"tools": TOOLS, "tool_choice": "any"}, {}, "tool_choice", 'tool_choice: must be "none", "auto", "required", {"type":'),
    (
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
        {},
        "tool_choice",
        "there is no tool 'x'; there are weather, time",
    ),
    ({"tools": TOOLS, "tool_choice": allowed("auto", "x")}, {}, "tool_choice", "there is no tool 'x'; there are weather, time"),
    ({"tools": TOOLS, "tool_choice": allowed("any", "time")}, {}, "tool_choice", 'tool_choice: must be "none", "auto"'),
    (
        {"tools": TOOLS, "tool_choice": allowed("auto", "time")},
        {"tools": Pythonic},
        "tool_choice",
        "tool_choice allowed_tools cannot be had from the tool parser of this server",
    ),
    (
        {"tools": TOOLS, "tool_choice": "required", "response_format": {"type": "json_object"}},
        {},
        "response_format",
        "with tool_choice required the output is a call: response_format cannot be had together with it",
    ),
    (
        {"tools": TOOLS, "tool_choice": "required"},
        {"tools": Pythonic},
        "tool_choice",
        "tool_choice required cannot be had from the tool parser of this server: it cannot keep an output to the form it reads",
    ),
    (
        {"tools": [tool("a", strict=True)]},
        {"tools": Pythonic},
        "tools",
        "strict functions cannot be had from the tool parser of this server: it cannot keep an output to the form it reads",
    ),
    (
        {"extra_body": {"guided_grammar": 'start: "a"'}},
        {"reasoning": Think(begins=True)},
        "guided_grammar",
        "guided_grammar cannot be had with tools, nor after reasoning: it is all of an output",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]}]},
        {},
        "messages[0].tool_calls[0].function.arguments",
        "messages[0].tool_calls[0].function.arguments: must be a JSON object, as text",
    ),
]


@pytest.mark.parametrize(("fields", "served", "param", "message"), REFUSED, ids=[each[2] for each in REFUSED])
def test_what_is_refused(fields, served, param, message):
    with pytest.raises(openai.BadRequestError) as refused:
        ask(service("It may.", **served), **fields)
    assert refused.value.body["message"].startswith(message)
    assert refused.value.param == param


def test_a_schema_that_the_grammar_backend_refuses_is_told_of_as_tools():
    served = service("")

    async def refuse(*args, **kwargs):
        raise RequestError("the grammar cannot be used: it is none", param="grammar")
        yield

    served.generate = refuse
    with pytest.raises(openai.BadRequestError) as refused:
        ask(served, tools=TOOLS, tool_choice="required")
    assert refused.value.param == "tools"


def test_tokenize_gives_a_chats_template_what_the_chat_gives_it():
    served = service("No.")
    body = {"messages": USER, "tools": TOOLS, "reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}}
    with TestClient(create_app(served)) as http:
        http.post("/v1/chat/completions", json=body).raise_for_status()
        told = http.post("/tokenize", json=body).json()
        http.post("/tokenize", json={**body, "tool_choice": "none"}).raise_for_status()
        twice = http.post("/tokenize", json={**body, "tools": [TOOLS[1], TOOLS[1]]})
        wrong = http.post("/tokenize", json={**body, "tool_choice": 7})
    [chat, tokenized, without] = served.chat_template.seen
    assert chat == tokenized
    assert [each["function"]["name"] for each in tokenized[1]["tools"]] == ["weather", "time"]
    assert tokenized[1]["reasoning_effort"] == "low"
    assert "tools" not in without[1]
    assert told["tokens"] == list(served.requests[0][1])
    assert (twice.status_code, twice.json()["error"]["message"]) == (400, "two tools are named 'time'")
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "tool_choice")
