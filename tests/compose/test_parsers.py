"""Which parsers of the model's words are chosen: the one that is named, the one that knows the chat template, or none."""

from importlib.metadata import entry_points

import pytest

from core.compose import compose
from core.compose.report import explain_text
from core.errors import UserError
from core.offers import ToolParserOffer
from core.plugin_manager import PluginManager
from tests.compose.fakes import Point, create, plugin

TAGS = "{{ tools }} <tool_call> {{ messages }}"
THINKS = "{% if enable_thinking %}</think>{% endif %}"
MODEL = ("--model", "random:llama-tiny")


def chosen(*argv):
    plan = compose([*MODEL, *argv])
    return tuple(plan.settings[name] for name in ("tool_call_parser", "reasoning_parser")), plan


def test_a_template_that_is_known_chooses_its_parsers():
    found, plan = chosen("--chat-template", TAGS + THINKS)
    assert found == ("hermes", "qwen3")
    assert plan.chosen("tool_parser").plugin == "tool_parsers"
    assert "why tool_call_parser: the model's chat template is one of those it knows" in explain_text(plan)


def test_a_template_that_nobody_knows_chooses_none():
    assert chosen()[0] == chosen("--chat-template", "{{ messages }}")[0] == ("none", "none")


def test_nobody_is_overruled():
    template = ("--chat-template", TAGS + THINKS)
    assert chosen(*template, "--tool-call-parser", "pythonic", "--reasoning-parser", "none")[0] == ("pythonic", "none")
    assert chosen("--tool-call-parser", "ernie-45-vl-thinking", "--reasoning-parser", "ernie-x1")[0] == ("ernie_x1", "ernie_x1")


def test_a_template_that_does_not_tell_of_tools_warns():
    [warning] = chosen("--tool-call-parser", "hermes")[1].warnings
    assert warning.what.startswith(
        "the chat template of random:llama-tiny does not tell the model of tools: it calls them only"
    )
    assert warning.where == "--tool-call-parser"
    assert chosen("--chat-template", TAGS)[1].warnings == ()


def test_two_that_know_a_template_are_none():
    mine = ToolParserOffer(name="mine", summary="mine", create=create, recognizes=lambda config, template: "<tool" in template)
    installed = entry_points(group="dovetail")
    manager = PluginManager.discover(entry_points=[*installed, Point("mine", plugin("mine", register_tool_parsers=[mine]))])
    plan = compose([*MODEL, "--chat-template", TAGS], manager=manager)
    assert plan.chosen("tool_parser") is None
    assert plan.reasons["tool_call_parser"] == "none, since several know the model's chat template: hermes, mine"


def test_a_template_that_cannot_be_read_is_told_with_the_flag():
    with pytest.raises(UserError) as refused:
        compose([*MODEL, "--chat-template", "/nowhere.jinja"])
    [problem] = refused.value.problems
    assert (problem.what, problem.where) == (
        "chat template '/nowhere.jinja' is neither a file that can be read nor a Jinja template",
        "--chat-template",
    )
