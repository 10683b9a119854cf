"""How likely a prompt is: ``prompt_logprobs``, and ``echo`` with ``logprobs``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.errors import RequestError
from core.interfaces.frontend import TextDelta, TokenInfo, Tokenizer
from frontends.openai_http.door import Call, Door
from frontends.openai_http.generation import LOWEST_LOGPROB, Form, Gathered


async def scores(door: Door, call: Call, most: int) -> list[list[TokenInfo]]:
    """Of each prompt, all tokens but the first. The prompts are read once more for it, before they are gone on with."""
    vocab = door.service.card.vocab
    if most > vocab:
        raise RequestError(f"prompt_logprobs must be at most {vocab}, got {most}", param="prompt_logprobs")
    return await door.reading_call(call.id, _scored(door, call, most))


async def _scored(door: Door, call: Call, most: int) -> list[list[TokenInfo]]:
    return [await door.service.score(prompt, most) for prompt in call.prompts]


class WithPromptLogprobs:
    """Another form, and in each choice ``prompt_logprobs``: by token its id, with nothing for the first."""

    def __init__(self, form: Form, scored: Sequence[list[TokenInfo]], most: int, n: int) -> None:
        self.object, self.chunk_object = form.object, form.chunk_object
        self._form = form
        self._told = [[None, *(_by_id(info, most) for info in infos)] for infos in scored]
        self._n = n

    def opening(self, choice: int) -> dict[str, Any]:
        entry = self._form.opening(choice) or {"index": choice, "text": "", "logprobs": None, "finish_reason": None}
        return entry | {"prompt_logprobs": self._told[choice // self._n]}

    def piece(self, choice: int, delta: TextDelta) -> dict[str, Any] | None:
        return self._form.piece(choice, delta)

    def closing(self, choice: int, delta: TextDelta) -> dict[str, Any]:
        return self._form.closing(choice, delta)

    def whole(self, choice: int, gathered: Gathered) -> dict[str, Any]:
        return self._form.whole(choice, gathered) | {"prompt_logprobs": self._told[choice // self._n]}


def _by_id(info: TokenInfo, most: int) -> dict[str, Any]:
    """The token itself, and the likeliest, whose ranks count from 1."""
    told = {
        str(each.token_id): {"logprob": max(each.logprob, LOWEST_LOGPROB), "rank": rank, "decoded_token": each.text}
        for rank, each in enumerate(info.top[:most], 1)
    }
    own = {"logprob": max(info.logprob, LOWEST_LOGPROB), "rank": info.rank + 1, "decoded_token": info.text}
    return {str(info.token_id): own} | told


def older_style(infos: Sequence[TokenInfo], most: int | None = None) -> dict[str, Any]:
    """Four parallel lists. The chosen token is always among its alternatives, when there are any."""
    top = []
    for info in infos:
        alternatives = {each.text: max(each.logprob, LOWEST_LOGPROB) for each in info.top[:most]}
        if alternatives:
            alternatives.setdefault(info.text, max(info.logprob, LOWEST_LOGPROB))
        top.append(alternatives)
    return {
        "tokens": [info.text for info in infos],
        "token_logprobs": [max(info.logprob, LOWEST_LOGPROB) for info in infos],
        "top_logprobs": top if any(top) else None,
        "text_offset": [info.text_offset for info in infos],
    }


def echoed(
    tokenizer: Tokenizer, prompt: Sequence[int], infos: Sequence[TokenInfo], most: int, *, whole: bool
) -> dict[str, Any]:
    """The same lists for a prompt. Its first token has nothing; special tokens are left out unless it is shown ``whole``."""
    lists: dict[str, Any] = older_style(infos, most)
    first = {"tokens": tokenizer.token_text(prompt[0]), "token_logprobs": None, "top_logprobs": None}
    shown = [number for number, token in enumerate(prompt) if whole or token not in tokenizer.special_ids]
    for name, own in first.items():
        values = [own, *(lists[name] or [None] * len(infos))]
        lists[name] = [values[number] for number in shown]
    if not most:
        lists["top_logprobs"] = None
    lists["text_offset"] = [0]
    for text in lists["tokens"]:
        lists["text_offset"].append(lists["text_offset"][-1] + len(text))
    lists["text_offset"].pop()
    return lists


def joined(prompt: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    """A prompt's lists and its answer's."""
    both = {name: [*prompt[name], *answer[name]] for name in ("tokens", "token_logprobs", "text_offset")}
    tops = prompt["top_logprobs"], answer["top_logprobs"]
    top = None if tops == (None, None) else [*(tops[0] or [None] * len(prompt["tokens"])), *(tops[1] or [])]
    return {**both, "top_logprobs": top}
