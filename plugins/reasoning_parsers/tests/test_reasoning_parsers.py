"""Each form through the contract."""

import pytest

from core.offers import Context
from core.testing import ReasoningParserContract
from reasoning_parsers.plugin import register_reasoning_parsers

OFFERS = {offer.name: offer for offer in register_reasoning_parsers()}
CLOSED = "assistant\n<think>\n\n</think>\n\n"


class Made(ReasoningParserContract):
    __test__ = False

    def make(self):
        return OFFERS[self.name].create(Context(None, {}, {}))


class TestQwen3(Made):
    __test__ = True
    name = "qwen3"
    examples = (
        ("assistant\n", "<think>\nOne, two.\n\n</think>\n\nThree.\n", "One, two.", "Three.\n"),
        ("assistant\n", "\n  Three <think> four", "", "\n  Three <think> four"),
        ("assistant\n", "<thi", "", "<thi"),
        ("assistant\n<think>\n", "One.</thinks></think>Three.", "One.</thinks>", "Three."),
        ("assistant\n<think>\n", "One </think", "One </think", ""),
        (CLOSED, "Three.</think>", "", "Three.</think>"),
        (CLOSED, "", "", ""),
    )


class TestDeepSeek(Made):
    __test__ = True
    name = "deepseek_r1"
    examples = (
        ("<Assistant>", "One.\n</think>\n\nThree.", "One.", "Three."),
        ("<Assistant>", "<think>One.</think>Three.", "One.", "Three."),
        ("<Assistant>", "One. \n", "One.", ""),
        (CLOSED, "Three.", "", "Three."),
    )


class TestErnieX1(Made):
    __test__ = True
    name = "ernie_x1"
    examples = (
        ("", "One.\n</think>\n\n\n<response>\nThree <b>.\n</response>\n", "One.", "Three <b>."),
        ("", "One.\n</think>\n\n\n<tool_call>{}</tool_call>\n", "One.", "<tool_call>{}</tool_call>\n"),
        ("<think>\n", "One.</think><response>Three</respo", "One.", "Three</respo"),
        (CLOSED, "<response>\n\nThree\n</response> four", "", "Threefour"),
        (CLOSED, "Three", "", "Three"),
    )


class TestErnieVl(Made):
    __test__ = True
    name = "ernie_45_vl"
    examples = (("Assistant: <think>\n", "One.\n</think>\n\nThree.", "One.", "Three."), (CLOSED, "Three.", "", "Three."))


@pytest.mark.parametrize(
    ("template", "config", "names"),
    [
        ("{% if enable_thinking %}<think></think>", {}, ["qwen3"]),
        ("{{ content.split('</think>') }}", {}, ["deepseek_r1"]),
        ("</think> <response>", {"model_type": "ernie4_5_moe"}, ["ernie_x1"]),
        ("{% if enable_thinking %}</think>", {"architectures": ["Ernie4_5_VLForCausalLM"]}, ["ernie_45_vl"]),
        ("{{ messages }}", {}, []),
    ],
)
def test_who_recognizes_a_template(template, config, names):
    assert [name for name, offer in OFFERS.items() if offer.recognizes(config, template)] == names
