"""What ``LLM`` and ``AsyncLLM`` return; field names are those that users of vLLM know."""

from __future__ import annotations

from dataclasses import dataclass

from core.interfaces.frontend import TextDelta, TokenInfo
from core.interfaces.request import FinishReason
from core.launch import Continuation


@dataclass(frozen=True)
class Logprob:
    """``rank`` 1 is the likeliest token. From the raw logits, before penalties and temperature."""

    logprob: float
    rank: int
    decoded_token: str


@dataclass(frozen=True)
class CompletionOutput:
    """One continuation.

    ``token_ids`` include a final end-of-text or stop token, ``text`` does not. ``finish_reason`` is "stop", "length" or "error"
    (then ``error`` says why); ``stop_reason`` the stop string or token id. ``logprobs``, if they were asked for, has one dict a
    token: the chosen one first, then the likeliest. ``cumulative_logprob`` is the sum over the chosen ones.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None
    stop_reason: str | int | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    cumulative_logprob: float | None = None
    error: str = ""


@dataclass(frozen=True)
class RequestOutput:
    """One prompt and its continuations, ``SamplingParams.n`` of them.

    ``prompt`` is None if token ids were given. ``num_cached_tokens`` counts the prompt tokens that were not computed anew.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    num_cached_tokens: int = 0
    finished: bool = True


@dataclass(frozen=True)
class EmbeddingOutput:
    """One prompt and its vector, of length 1. ``prompt`` is None if token ids were given."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    embedding: list[float]


@dataclass(frozen=True)
class CompletionDelta:
    """What one continuation gained. The last of an ``index`` has a ``finish_reason``.

    ``text`` may be empty though there are ``token_ids``: the beginning of a character, or of what may become a stop string.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    error: str = ""


def completion_delta(delta: TextDelta) -> CompletionDelta:
    return CompletionDelta(
        index=delta.index,
        text=delta.text,
        token_ids=list(delta.token_ids),
        finish_reason=delta.finish_reason,
        stop_reason=delta.stop_reason,
        logprobs=None if delta.logprobs is None else [_logprobs(info) for info in delta.logprobs],
        error=delta.error,
    )


def completion_output(continuation: Continuation) -> CompletionOutput:
    infos = continuation.logprobs
    return CompletionOutput(
        index=continuation.index,
        text=continuation.text,
        token_ids=continuation.token_ids,
        finish_reason=continuation.finish_reason,
        stop_reason=continuation.stop_reason,
        logprobs=None if infos is None else [_logprobs(info) for info in infos],
        cumulative_logprob=None if infos is None else sum(info.logprob for info in infos),
        error=continuation.error,
    )


def _logprobs(info: TokenInfo) -> dict[int, Logprob]:
    found = {info.token_id: Logprob(info.logprob, info.rank + 1, info.text)}
    for rank, top in enumerate(info.top, start=1):
        found.setdefault(top.token_id, Logprob(top.logprob, rank, top.text))
    return found
