"""``POST /v1/completions``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from core.errors import RequestError
from core.interfaces.frontend import ModelCard, TextDelta, TokenInfo
from core.interfaces.request import SamplingParams
from frontends.openai_http.body import read_body
from frontends.openai_http.deltas import while_connected
from frontends.openai_http.door import Door
from frontends.openai_http.form import field_of
from frontends.openai_http.generation import Form, Gathered, answer, encode
from frontends.openai_http.params import check_limits, completion_params, fitted, prompt_logprobs, renamed
from frontends.openai_http.prompt_logprobs import WithPromptLogprobs, echoed, joined, older_style, scores
from frontends.openai_http.schema import CompletionBody
from frontends.openai_http.token_ids import WithTokenIds


@dataclass(frozen=True)
class Echo:
    """A prompt that stands before its answers; ``logprobs`` where its tokens' are told too."""

    text: str
    logprobs: dict[str, Any] | None = None


class CompletionForm:
    """``echoes`` has each prompt when it is to stand before its answers."""

    object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, n: int, echoes: Sequence[Echo] | None, *, logprobs: bool = True) -> None:
        self._n = n
        self._echoes = echoes
        self._with_logprobs = logprobs

    def opening(self, choice: int) -> dict[str, Any] | None:
        echo = self._echo(choice)
        return None if echo is None else self._choice(choice, echo.text) | {"logprobs": echo.logprobs}

    def piece(self, choice: int, delta: TextDelta) -> dict[str, Any]:
        chunk = self._choice(choice, delta.text)
        if delta.logprobs:
            echo = self._echo(choice)
            chunk["logprobs"] = _moved(older_style(delta.logprobs), 0 if echo is None else len(echo.text))
        return chunk

    def closing(self, choice: int, delta: TextDelta) -> dict[str, Any]:
        return self._choice(choice, "") | {"finish_reason": delta.finish_reason, "stop_reason": delta.stop_reason}

    def whole(self, choice: int, gathered: Gathered) -> dict[str, Any]:
        assert gathered.last is not None
        echo = self._echo(choice) or Echo("")
        logprobs = echo.logprobs
        if gathered.infos and self._with_logprobs:
            answered = _moved(older_style(gathered.infos), len(echo.text))
            logprobs = answered if logprobs is None else joined(logprobs, answered)
        return {
            "index": choice,
            "text": echo.text + gathered.text,
            "logprobs": logprobs,
            "finish_reason": gathered.last.finish_reason,
            "stop_reason": gathered.last.stop_reason,
        }

    def _echo(self, choice: int) -> Echo | None:
        return None if self._echoes is None else self._echoes[choice // self._n]

    def _choice(self, choice: int, text: str) -> dict[str, Any]:
        return {"index": choice, "text": text, "logprobs": None, "finish_reason": None}


def add_routes(app: FastAPI, door: Door) -> None:
    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = await door.reading(read_body(request, CompletionBody, door.intake))
        model = door.model_named(body.model)
        params = completion_params(body, door.service.card.defaults, door.section.max_logprobs, door.service.tokenizer)
        given = body.prompt if body.prompt_token_ids is None else [body.prompt_token_ids]
        _check_at_once(door.service.card, len(given), params.n)
        prompts = [await _token_ids(door, body, prompt) for prompt in given]
        params = fitted(body, params, door.service.card.max_model_len - max(map(len, prompts)))
        for prompt in prompts:
            check_limits(door.service.card, prompt, params)
        call = door.call(body, "cmpl-", model, prompts, params)
        most = prompt_logprobs(body, door.section.max_logprobs)
        try:
            scored = None if most is None else await while_connected(request.receive, scores(door, call, most))
            n = body.n or 1
            echoes = _echoes(door, body, params, given, prompts, scored) if body.echo else None
            form: Form = CompletionForm(n, echoes, logprobs=body.logprobs is not None)
            if body.prompt_logprobs is not None and scored is not None:
                form = WithPromptLogprobs(form, scored, body.prompt_logprobs, n)
            if body.return_token_ids:
                form = WithTokenIds(form, call.prompts, n)
            return await answer(door, request, call, form, partial(_likeliest, n=n, of=params.n))
        except RequestError as error:
            raise renamed(error, {"grammar": field_of(body)}) from None


def _check_at_once(card: ModelCard, num_prompts: int, n: int) -> None:
    """:raises RequestError: for a call that would find the queue full for ever."""
    if card.at_once is not None and num_prompts * n > card.at_once:
        raise RequestError(
            f"{num_prompts} prompts with {n} continuations each are more than this server takes at once: "
            f"at most {card.at_once} continuations; send several calls",
            param="prompt" if num_prompts > 1 else "n",
        )


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


def _echoes(
    door: Door,
    body: CompletionBody,
    params: SamplingParams,
    given: Sequence[str | list[int]],
    prompts: Sequence[list[int]],
    scored: Sequence[list[TokenInfo]] | None,
) -> list[Echo]:
    """Special tokens that the tokenizer put before a text are no part of it, nor of its logprobs."""
    tokenizer, echoes = door.service.tokenizer, []
    for number, (prompt, ids) in enumerate(zip(given, prompts, strict=True)):
        shown = prompt if isinstance(prompt, str) else tokenizer.decode(ids, skip_special_tokens=params.skip_special_tokens)
        logprobs = None
        if scored is not None and body.logprobs is not None:
            whole = not isinstance(prompt, str) and not params.skip_special_tokens
            logprobs = echoed(tokenizer, ids, scored[number], body.logprobs, whole=whole)
        echoes.append(Echo(shown, logprobs))
    return echoes


def _moved(lists: dict[str, Any], offset: int) -> dict[str, Any]:
    """An answer's lists, where it begins at ``offset`` of the text."""
    return lists | {"text_offset": [offset + each for each in lists["text_offset"]]}
