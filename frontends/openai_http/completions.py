"""``POST /v1/completions``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from core.errors import RequestError
from core.interfaces.frontend import TextDelta, TokenInfo
from frontends.openai_http.body import read_body
from frontends.openai_http.door import Call, Door
from frontends.openai_http.form import field_of
from frontends.openai_http.generation import LOWEST_LOGPROB, Form, Gathered, answer, encode
from frontends.openai_http.params import check_limits, completion_params, fitted, renamed
from frontends.openai_http.schema import CompletionBody
from frontends.openai_http.token_ids import WithTokenIds


class CompletionForm:
    """``echoes`` has each prompt's text when it is to stand before its answers."""

    object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, n: int, echoes: Sequence[str] | None, *, logprobs: bool = True) -> None:
        self._n = n
        self._echoes = echoes
        self._with_logprobs = logprobs

    def opening(self, choice: int) -> dict[str, Any] | None:
        return self._choice(choice, self._echo(choice)) if self._echoes is not None else None

    def piece(self, choice: int, delta: TextDelta) -> dict[str, Any]:
        chunk = self._choice(choice, delta.text)
        if delta.logprobs:
            chunk["logprobs"] = _logprobs(delta.logprobs)
        return chunk

    def closing(self, choice: int, delta: TextDelta) -> dict[str, Any]:
        return self._choice(choice, "") | {"finish_reason": delta.finish_reason, "stop_reason": delta.stop_reason}

    def whole(self, choice: int, gathered: Gathered) -> dict[str, Any]:
        assert gathered.last is not None
        return {
            "index": choice,
            "text": self._echo(choice) + gathered.text,
            "logprobs": _logprobs(gathered.infos) if gathered.infos and self._with_logprobs else None,
            "finish_reason": gathered.last.finish_reason,
            "stop_reason": gathered.last.stop_reason,
        }

    def _echo(self, choice: int) -> str:
        return "" if self._echoes is None else self._echoes[choice // self._n]

    def _choice(self, choice: int, text: str) -> dict[str, Any]:
        return {"index": choice, "text": text, "logprobs": None, "finish_reason": None}


def add_routes(app: FastAPI, door: Door) -> None:
    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = await door.reading(read_body(request, CompletionBody, door.section.max_request_bytes))
        model = door.model_named(body.model)
        params = completion_params(body, door.service.card.defaults, door.section.max_logprobs)
        given = body.prompt if body.prompt_token_ids is None else [body.prompt_token_ids]
        prompts = [await _token_ids(door, body, prompt) for prompt in given]
        params = fitted(body, params, door.service.card.max_model_len - max(map(len, prompts)))
        for prompt in prompts:
            check_limits(door.service.card, prompt, params)
        call = Call.of(body, "cmpl", model, prompts, params)
        echoes = [_echo(door, prompt, params.skip_special_tokens) for prompt in given] if body.echo else None
        try:
            n = body.n or 1
            form: Form = CompletionForm(n, echoes, logprobs=body.logprobs is not None)
            if body.return_token_ids:
                form = WithTokenIds(form, call.prompts, n)
            return await answer(door, request, call, form, partial(_likeliest, n=n, of=params.n))
        except RequestError as error:
            raise renamed(error, {"grammar": field_of(body)}) from None


async def _token_ids(door: Door, body: CompletionBody, prompt: str | list[int]) -> list[int]:
    if not isinstance(prompt, str):
        return prompt
    special = body.add_special_tokens is not False
    return await encode(door.service.tokenizer, prompt, add_special_tokens=special)


def _likeliest(choices: list[Gathered], *, n: int, of: int) -> list[Gathered]:
    """Of each prompt's ``of`` continuations the ``n`` of the highest log-probability a token, best first."""
    if n == of:
        return choices
    prompts = [choices[at : at + of] for at in range(0, len(choices), of)]
    return [best for each in prompts for best in sorted(each, key=_mean_logprob, reverse=True)[:n]]


def _mean_logprob(gathered: Gathered) -> float:
    return sum(info.logprob for info in gathered.infos) / max(1, len(gathered.infos))


def _echo(door: Door, prompt: str | list[int], skip_special_tokens: bool) -> str:
    if isinstance(prompt, str):
        return prompt
    return door.service.tokenizer.decode(prompt, skip_special_tokens=skip_special_tokens)


def _logprobs(infos: Sequence[TokenInfo]) -> dict[str, Any]:
    """The four parallel lists of the older style. The chosen token is always among its alternatives, when there are any."""
    top = []
    for info in infos:
        alternatives = {each.text: max(each.logprob, LOWEST_LOGPROB) for each in info.top}
        if alternatives:
            alternatives.setdefault(info.text, max(info.logprob, LOWEST_LOGPROB))
        top.append(alternatives)
    return {
        "tokens": [info.text for info in infos],
        "token_logprobs": [max(info.logprob, LOWEST_LOGPROB) for info in infos],
        "top_logprobs": top if any(top) else None,
        "text_offset": [info.text_offset for info in infos],
    }
