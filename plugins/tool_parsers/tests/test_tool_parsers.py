"""Each form through the contract, and what is particular to it."""

import json

import pytest

from core.interfaces.parsers import CallBegins, CallGrows, Said
from core.testing import ToolParserContract
from core.testing.parsers import CITY, TOOLS, told
from tool_parsers.bare import Bare
from tool_parsers.plugin import register_tool_parsers
from tool_parsers.pythonic import Pythonic
from tool_parsers.tagged import Tagged

ARGUMENTS = json.dumps(CITY)


def tagged(name, arguments):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


class TestTagged(ToolParserContract):
    plain = (
        "<tool",
        "<tool_call",
        "<tool_call>",
        "<tool_call> is how it begins",
        "so: \n<tool_call>",
        '<tool_call>{"nam',
        "a </tool_call> b",
    )
    examples = (
        (tagged("get_weather", ARGUMENTS), ("", [("get_weather", CITY)])),
        (f"I look.\n{tagged('get_time', '{}')}", ("I look.", [("get_time", {})])),
        (f"{tagged('get_time', '{}')}\n{tagged('get_weather', ARGUMENTS)}\n", ("", [("get_time", {}), ("get_weather", CITY)])),
        (f"{tagged('get_time', '{}')} And then.", ("And then.", [("get_time", {})])),
        (f'<tool_call>{{"arguments": {ARGUMENTS}, "name": "get_weather"}}</tool_call>', ("", [("get_weather", CITY)])),
        (f"{tagged('get_weather', json.dumps(ARGUMENTS))}", ("", [("get_weather", CITY)])),  # encoded twice
        ('<tool_call>{"id": 1, "name": "get_time", "arguments": null}</tool_call>', ("", [("get_time", {})])),
        ('<tool_call>{"name": "get_time"}<tool_call>{"name": "get_time"}', ("", [("get_time", {})] * 2)),
        ('<tool_call>{"name": 3, "arguments": {}}</tool_call>', ('<tool_call>{"name": 3, "arguments": {}}</tool_call>', [])),
    )

    def make(self):
        return Tagged()


class TestBare(ToolParserContract):
    plain = ('{"city": "Paris"}', '{"name": "Ann", "parameters": {}}', "{", "[]", "<|python", ' {"a": [1, 2]} and so on')
    examples = (
        (f'{{"name": "get_weather", "parameters": {ARGUMENTS}}}', ("", [("get_weather", CITY)])),
        ('\n<|python_tag|>{"name": "get_time", "parameters": {}}', ("", [("get_time", {})])),
        (
            f'{{"name": "get_time", "parameters": {{}}}}; {{"name": "get_weather", "arguments": {ARGUMENTS}}}\n',
            ("", [("get_time", {}), ("get_weather", CITY)]),
        ),
        ('{"name": "get_time", "parameters": {}} Done.', (" Done.", [("get_time", {})])),
    )

    def make(self):
        return Bare()


class TestPythonic(ToolParserContract):
    plain = ("[get_", "[1, 2]", "[get_time(1)] is wrong", "[get_time(", "[get_time(a=b)]", "get_time()", "[get_time]")
    examples = (
        (f"[get_weather(city={CITY['city']!r}, days=2)]", ("", [("get_weather", CITY)])),
        (" [get_time(), get_weather(days=2, city='Kö\"ln }]')]\n", ("", [("get_time", {}), ("get_weather", CITY)])),
        ("[get_time()] Done.", ("Done.", [("get_time", {})])),
    )

    def make(self):
        return Pythonic()


def test_a_name_is_told_before_its_arguments_and_these_as_they_come():
    stream = Tagged().stream(TOOLS)
    assert stream.push('Well.\n<tool_call>{"name": "get_wea') == [Said("Well.")]
    assert stream.push('ther", "arg') == [CallBegins("get_weather")]
    assert stream.push('uments": {"city": "Pa') == [CallGrows('{"city": "Pa')]
    assert stream.push('ris"}}</tool') == [CallGrows('ris"}')]
    assert stream.push("_call>") == []
    assert stream.final() == []


def test_arguments_that_are_cut_off_stay_as_they_are():
    for parser in (Tagged(), Bare()):
        text = '{"name": "get_weather", "parameters": {"city": "Pa'
        text = f"<tool_call>{text}" if isinstance(parser, Tagged) else text
        assert told(parser.stream(TOOLS), [text], whole=False) == ("", [("get_weather", '{"city": "Pa')])


def test_python_that_is_deep_or_long_is_no_call():
    for argument in ("[" * 5000 + "]" * 5000, "'" + "x" * 200_000 + "'", "__import__('os')", "1 + " * 3000 + "1"):
        text = f"[get_weather(city={argument})]"
        assert told(Pythonic().stream(TOOLS), [text]) == (text, [])


@pytest.mark.parametrize(
    ("template", "config", "names"),
    [
        ("{{ tools }} <tool_call>", {}, ["hermes"]),
        ("{{ tools }} <tool_call>", {"architectures": ["Ernie4_5_MoeForCausalLM"]}, ["ernie_x1"]),
        ("<tool_call>\n<function=", {}, []),
        ('{"name": function name, "parameters": dictionary of argument name and its value}', {}, ["llama3_json"]),
        ("[func_name1(params_name1=params_value1...)]", {}, ["pythonic"]),
        ("{{ messages }}", {}, []),
        ("", {}, []),
    ],
)
def test_who_recognizes_a_template(template, config, names):
    assert [offer.name for offer in register_tool_parsers() if offer.recognizes(config, template)] == names
