"""Calls of tools in what a model writes, in the forms of Hermes and Qwen, ERNIE, Llama 3 and of Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from core.hookspecs import hookimpl
from core.offers import Alias, Context, ForeignWord, ToolParserOffer

if TYPE_CHECKING:
    from core.interfaces.parsers import ToolParser

FLAG = "--tool-call-parser"


def tagged(context: Context) -> ToolParser:
    from tool_parsers.tagged import Tagged

    return Tagged()


def bare(context: Context) -> ToolParser:
    from tool_parsers.bare import Bare

    return Bare()


def pythonic(context: Context) -> ToolParser:
    from tool_parsers.pythonic import Pythonic

    return Pythonic()


def is_ernie(config: Mapping[str, Any]) -> bool:
    names = [*(config.get("architectures") or ()), config.get("model_type") or ""]
    return any(str(name).lower().startswith("ernie") for name in names)


def is_tagged_json(template: str) -> bool:
    """Others write something else than JSON between the same tags."""
    return "<tool_call>" in template and "<function=" not in template and "<arg_key>" not in template


@hookimpl
def register_tool_parsers() -> Iterable[ToolParserOffer]:
    yield ToolParserOffer(
        name="hermes",
        summary='<tool_call>{"name": ..., "arguments": ...}</tool_call>, as Hermes and Qwen write it',
        create=tagged,
        recognizes=lambda config, template: is_tagged_json(template) and not is_ernie(config),
        foreign_words=(
            ForeignWord(
                "the model may always choose to call tools, where there is a parser",
                "none",
                flag="--enable-auto-tool-choice",
                switch=True,
            ),
            ForeignWord(
                "parsers of other servers do not run here",
                "refuses",
                flag="--tool-parser-plugin",
                remedy="write a plugin with the hook register_tool_parsers; docs/plugins/tutorial.md shows how",
            ),
        ),
    )
    yield ToolParserOffer(
        name="ernie_x1",
        summary="the same, as ERNIE's thinking models write it",
        create=tagged,
        recognizes=lambda config, template: is_tagged_json(template) and is_ernie(config),
        aliases=(
            Alias("calls of ERNIE-4.5-Thinking (FastDeploy)", flag=FLAG, value="ernie-x1", chooses="ernie_x1"),
            Alias("calls of ERNIE-4.5-VL-Thinking (FastDeploy)", flag=FLAG, value="ernie-45-vl-thinking", chooses="ernie_x1"),
            Alias("calls of ERNIE-4.5-Thinking (vLLM)", flag=FLAG, value="ernie45", chooses="ernie_x1"),
        ),
    )
    yield ToolParserOffer(
        name="llama3_json",
        summary='{"name": ..., "parameters": ...} and nothing else, as Llama 3.1 and 3.2 write it',
        create=bare,
        recognizes=lambda config, template: '"parameters": dictionary of argument name' in template,
    )
    yield ToolParserOffer(
        name="pythonic",
        summary="[name(argument=value), ...] and nothing else, as small Llama 3.2 models are asked to write it",
        create=pythonic,
        recognizes=lambda config, template: "[func_name1(params_name1=" in template,
    )
