"""From a request's fields to ``SamplingParams``: what the request says, else what the checkpoint says, else OpenAI's defaults.

Those last are temperature 1, top_p 1, no penalties, one choice; ``max_tokens`` is 16 for a completion and the rest of the
context for a chat.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from core.errors import RequestError
from core.interfaces.frontend import ModelCard, Tokenizer
from core.interfaces.limits import RequestLimits
from core.interfaces.request import SamplingParams
from frontends.openai_http.form import field_of, grammar_of
from frontends.openai_http.schema import ChatBody, CompletionBody, GenerationBody

COMPLETION_TOKENS = 16  # OpenAI's default for a completion
LONGEST_WORD = 256  # characters of a bad word; a thousand of them are spelled in four ways while every stream waits
_FIELDS = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "min_tokens",
    "skip_special_tokens",
)
_DEFAULTED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def chat_params(body: ChatBody, defaults: Mapping[str, Any], max_logprobs: int, tokenizer: Tokenizer) -> SamplingParams:
    if body.top_logprobs and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs to be true", param="top_logprobs")
    wanted = None
    if body.logprobs:
        wanted = _logprobs("top_logprobs", body.top_logprobs or 0, max_logprobs)
    limit_field = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    return _params(body, defaults, tokenizer, limit_field, None, wanted)


def completion_params(
    body: CompletionBody, defaults: Mapping[str, Any], max_logprobs: int, tokenizer: Tokenizer
) -> SamplingParams:
    if body.suffix:
        raise RequestError(
            "suffix is not supported: this model only continues text", param="suffix", code="unsupported_parameter"
        )
    if body.best_of is not None and body.best_of < (body.n or 1):
        raise RequestError(f"best_of ({body.best_of}) must be at least n ({body.n or 1})", param="best_of")
    chooses = body.best_of is not None and body.best_of > (body.n or 1)
    if chooses and body.stream:
        raise RequestError("the best of several is known at their end: best_of cannot be streamed", param="best_of")
    wanted = None if body.logprobs is None else _logprobs("logprobs", body.logprobs, max_logprobs)
    params = _params(body, defaults, tokenizer, "max_tokens", COMPLETION_TOKENS, wanted)
    if not chooses:
        return params
    try:
        return msgspec.structs.replace(params, n=body.best_of, logprobs=wanted or 0)
    except RequestError as error:
        raise RequestError(error.message.replace("n ", "best_of ", 1), param="best_of") from None


def check_supported(body: GenerationBody) -> None:
    """:raises RequestError: for what would change the answer and cannot be done, and for options that contradict each other."""
    for name in body.demands():
        raise RequestError(f"{name} is not supported by this server", param=name, code="unsupported_parameter")
    if body.stream_options is not None and not body.stream:
        raise RequestError("stream_options needs stream to be true", param="stream_options")


def prompt_logprobs(body: GenerationBody, max_logprobs: int) -> int | None:
    """How many likeliest tokens are told of each of the prompt; None where nothing is."""
    echoed = isinstance(body, CompletionBody) and body.echo and body.logprobs is not None
    wanted = [] if body.prompt_logprobs is None else [_logprobs("prompt_logprobs", body.prompt_logprobs, max_logprobs)]
    if echoed and isinstance(body, CompletionBody) and body.logprobs is not None:
        wanted.append(body.logprobs)
    return max(wanted, default=None)


def chat_names(body: ChatBody) -> dict[str, str]:
    """How a chat calls what the engine calls otherwise."""
    names = {"prompt": "messages", "logprobs": "top_logprobs", "grammar": field_of(body)}
    if body.max_completion_tokens is not None:
        names["max_tokens"] = "max_completion_tokens"
    return names


def fitted(body: CompletionBody, params: SamplingParams, room: int) -> SamplingParams:
    """A default of 16 tokens is no demand: where fewer fit, it is that many. What the request asked for stays."""
    if body.max_tokens is not None or room < 1 or room >= COMPLETION_TOKENS:
        return params
    return msgspec.structs.replace(params, max_tokens=room)


def check_limits(card: ModelCard, prompt: list[int], params: SamplingParams) -> None:
    RequestLimits(card.max_model_len, card.vocab).check(prompt, params)


def renamed(error: RequestError, names: Mapping[str, str]) -> RequestError:
    """The same error under the name by which this request knows the field."""
    if error.param is None or error.param not in names:
        return error
    name, message = names[error.param], error.message
    if "_" in error.param:  # else it is a word that sentences have too
        message = re.sub(rf"\b{error.param}\b", name, message)
    return RequestError(message, param=name, code=error.code, status=error.status)


def _params(
    body: GenerationBody,
    defaults: Mapping[str, Any],
    tokenizer: Tokenizer,
    limit_field: str,
    limit: int | None,
    logprobs: int | None,
) -> SamplingParams:
    fields = {name: defaults[name] for name in _DEFAULTED if defaults.get(name) is not None}
    fields |= {name: value for name in _FIELDS if (value := getattr(body, name)) is not None}
    given = getattr(body, limit_field)
    if given == 0 and isinstance(body, CompletionBody) and (body.echo or body.prompt_logprobs is not None):
        given = 1  # nothing is generated, so nothing is limited
    elif given is not None and given < 1:
        reads = "; with echo or prompt_logprobs it may be 0" if isinstance(body, CompletionBody) and given == 0 else ""
        raise RequestError(f"{limit_field} must be at least 1, got {given}{reads}", param=limit_field)
    try:
        return SamplingParams(
            **fields,
            max_tokens=limit if given is None else given,
            logit_bias=_bias(body.logit_bias or {}),
            bad_words=(*_spellings(body.bad_words or (), tokenizer), *map(tuple, body.bad_words_token_ids or ())),
            logprobs=logprobs,
            grammar=grammar_of(body),
        )
    except RequestError as error:
        raise renamed(error, {"max_tokens": limit_field}) from None


def _spellings(words: Sequence[str], tokenizer: Tokenizer) -> set[tuple[int, ...]]:
    """The tokens of each word at the beginning of a text, behind a space, and in the middle of a word."""
    found: set[tuple[int, ...]] = set()
    for word in words:
        if not word.strip():
            raise RequestError("each of bad_words must be a word", param="bad_words")
        if len(word) > LONGEST_WORD:
            raise RequestError(f"each of bad_words has at most {LONGEST_WORD} characters, not {len(word)}", param="bad_words")
        for before in ("", " ", "a", "a "):
            lead = tokenizer.encode(before, add_special_tokens=False) if before else []
            ids = tokenizer.encode(before + word, add_special_tokens=False)
            if before == " ":
                found.add(tuple(ids))
            elif ids[: len(lead)] == lead and len(ids) > len(lead):
                found.add(tuple(ids[len(lead) :]))
    return found


def _bias(given: Mapping[str, float]) -> dict[int, float]:
    for token in given:
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise RequestError(f"logit_bias takes token ids as keys, not {token[:40]!r}", param="logit_bias")
    return {int(token): bias for token, bias in given.items()}


def _logprobs(field: str, wanted: int, most: int) -> int:
    if not 0 <= wanted <= most:
        raise RequestError(f"{field} must lie in [0, {most}], got {wanted}", param=field)
    return wanted
