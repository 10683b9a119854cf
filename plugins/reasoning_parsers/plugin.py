"""Reasoning in what a model writes, told from its answer by the marks of Qwen 3, DeepSeek R1 and ERNIE."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from core.hookspecs import hookimpl
from core.offers import Alias, Context, ReasoningParserOffer

if TYPE_CHECKING:
    from core.interfaces.parsers import ReasoningParser

FLAG = "--reasoning-parser"


def think(*, begins: bool, wrap: tuple[str, str] | None = None) -> Callable[[Context], ReasoningParser]:
    def create(context: Context) -> ReasoningParser:
        from reasoning_parsers.think import Think

        return Think(begins=begins, wrap=wrap)

    return create


def is_ernie(config: Mapping[str, Any]) -> bool:
    names = [*(config.get("architectures") or ()), config.get("model_type") or ""]
    return any(str(name).lower().startswith("ernie") for name in names)


@hookimpl
def register_reasoning_parsers() -> Iterable[ReasoningParserOffer]:
    yield ReasoningParserOffer(
        name="qwen3",
        summary="between <think> and </think>, if the output begins with it, as Qwen 3 does where thinking is enabled",
        create=think(begins=False),
        recognizes=lambda config, template: "</think>" in template and "enable_thinking" in template and not is_ernie(config),
    )
    yield ReasoningParserOffer(
        name="deepseek_r1",
        summary="up to </think>, always, as DeepSeek R1 and the models made from it do",
        create=think(begins=True),
        recognizes=lambda config, template: (
            "</think>" in template and "enable_thinking" not in template and not is_ernie(config)
        ),
    )
    yield ReasoningParserOffer(
        name="ernie_x1",
        summary="up to </think>, then the answer between <response> and </response>, as ERNIE-4.5-Thinking does",
        create=think(begins=True, wrap=("<response>", "</response>")),
        recognizes=lambda config, template: "</think>" in template and "<response>" in template and is_ernie(config),
        aliases=(
            Alias("reasoning of ERNIE-4.5-Thinking (FastDeploy)", flag=FLAG, value="ernie-x1", chooses="ernie_x1"),
            Alias("reasoning of ERNIE-4.5-Thinking (vLLM)", flag=FLAG, value="ernie45", chooses="ernie_x1"),
        ),
    )
    yield ReasoningParserOffer(
        name="ernie_45_vl",
        summary="up to </think>, always, as ERNIE-4.5-VL does where thinking is enabled",
        create=think(begins=True),
        recognizes=lambda config, template: "</think>" in template and "<response>" not in template and is_ernie(config),
        aliases=(
            Alias("reasoning of ERNIE-4.5-VL (FastDeploy)", flag=FLAG, value="ernie-45-vl", chooses="ernie_45_vl"),
            Alias(
                "reasoning of ERNIE-4.5-VL-Thinking (FastDeploy)",
                flag=FLAG,
                value="ernie-45-vl-thinking",
                chooses="ernie_45_vl",
            ),
        ),
    )
