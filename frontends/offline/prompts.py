"""How callers write prompts, and the token ids they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, cast

from core.errors import RequestError
from core.interfaces.frontend import ChatTemplate, ModelCard, Tokenizer
from core.interfaces.request import SamplingParams

Prompt: TypeAlias = str | Sequence[int] | Mapping[str, Any]
Message: TypeAlias = Mapping[str, Any]


def one_or_many(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """A list of ints is one prompt; a list of anything else is many."""
    if isinstance(prompts, (str, Mapping)):
        return [prompts]
    if prompts and all(isinstance(item, int) for item in prompts):
        return [cast(Sequence[int], prompts)]
    return list(cast(Sequence[Prompt], prompts))


def read_prompt(number: int, prompt: Prompt, tokenizer: Tokenizer) -> tuple[str | None, list[int]]:
    """(its text if it has one, its token ids)."""
    if isinstance(prompt, Mapping):
        known = set(prompt) & {"prompt", "prompt_token_ids"}
        if len(known) != 1 or len(prompt) != 1:
            raise RequestError(
                f'prompt {number}: a mapping must have "prompt" or "prompt_token_ids", and nothing else; '
                f"this one has {', '.join(map(repr, prompt)) or 'nothing'}",
                param="prompt",
            )
        prompt = cast(Prompt, prompt[known.pop()])
    if isinstance(prompt, str):
        return prompt, tokenizer.encode(prompt)
    if isinstance(prompt, Mapping) or not isinstance(prompt, Sequence):
        raise RequestError(
            f"prompt {number}: a prompt is a string or a list of token ids, not {type(prompt).__name__}", param="prompt"
        )
    return None, list(cast(Sequence[int], prompt))


def needed_template(template: ChatTemplate | None, card: ModelCard) -> ChatTemplate:
    """:raises RequestError: when the model has none."""
    if template is None:
        raise RequestError(
            f"model {card.name!r} has no chat template: set chat_template, or use generate()", code="no_chat_template"
        )
    return template


def default_params(card: ModelCard) -> SamplingParams:
    return SamplingParams(**card.defaults)
