"""What is asked of the engine, and what it answers. Token ids only: text stays in ``core.text``.

All of these cross the process boundary as msgpack; they are msgspec structs, immutable and validated once,
where they are made.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import Literal

import msgspec

from core.errors import RequestError

MAX_STOP_STRINGS = 16
MAX_STOP_STRING = 4096  # characters
MAX_STOP_TOKEN_IDS = 1024
MAX_LOGIT_BIAS = 1024
MAX_BAD_WORDS = 1024
MAX_BAD_WORD = 64  # tokens

GrammarKind = Literal["json_object", "json_schema", "regex", "choice", "grammar", "parts"]
ReadFor = Literal["", "last", "mean", "likelihoods"]
FinishReason = Literal["stop", "length", "abort", "error"]


class Grammar(msgspec.Struct, frozen=True, array_like=True):
    """The form an output shall have. ``text``: a JSON schema; a regular expression; a JSON list of strings, one of which
    the output is; a grammar in the backend's own notation (Lark or GBNF); nothing for "json_object", which is any JSON object.

    "parts" is for programs, a tool parser for one: a JSON list of parts that follow each other, each an object of one kind.
    ``{"text": t}`` is t itself; ``{"until": t}`` any text up to the first t, and t; ``{"anything": true}`` any text;
    ``{"json_schema": s}`` a document of the schema s; ``{"regex": r}`` what r matches whole; ``{"any_of": [p, ...]}`` one of
    these lists of parts; ``{"repeat": p, "least": n, "most": m}`` the list p of parts, n to m times, without bound for no m.
    """

    kind: GrammarKind
    text: str = ""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How tokens are chosen and when generation ends. Names and meanings are OpenAI's, then vLLM's.

    ``temperature`` 0 is greedy. ``top_k`` 0 or -1 keeps the whole vocabulary. ``max_tokens`` None means
    "what is left of the context", which is what a front end for chats wants: left out it is 16, as for OpenAI's completions.
    ``logprobs`` n asks for the log-probability of each chosen token and of the n likeliest, taken from the raw logits (before
    penalties and temperature). ``seed`` None draws one.
    ``stop`` strings end generation when they appear in the *text*; they are removed from it unless
    ``include_stop_str_in_output``. A stop token id or eos ends generation and is not part of the text.
    Before ``min_tokens`` tokens neither eos nor a stop token id can be sampled, nor a stop string matched.
    ``bad_words``: sequences of tokens that the output never has. ``logit_bias`` is added to the raw logits. ``n`` asks for n
    independent continuations. ``grammar``: the output's form.

    :raises RequestError: with ``param`` naming the field.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    logit_bias: dict[int, float] = {}
    bad_words: tuple[tuple[int, ...], ...] = ()
    skip_special_tokens: bool = True
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        # A plain list or string is what callers write; the struct keeps tuples so that it can be hashed and shared.
        if isinstance(self.stop, str):
            msgspec.structs.force_setattr(self, "stop", (self.stop,))
        elif self.stop is None:
            msgspec.structs.force_setattr(self, "stop", ())
        else:
            msgspec.structs.force_setattr(self, "stop", tuple(self.stop))
        msgspec.structs.force_setattr(self, "stop_token_ids", tuple(self.stop_token_ids or ()))
        if self.top_k == -1:
            msgspec.structs.force_setattr(self, "top_k", 0)
        _whole(self, "n", 1, 128)
        _number(self, "temperature", 0.0, 100.0)
        _number(self, "top_p", 0.0, 1.0)
        _whole(self, "top_k", 0, 2**31 - 1)
        _number(self, "min_p", 0.0, 1.0)
        _number(self, "presence_penalty", -2.0, 2.0)
        _number(self, "frequency_penalty", -2.0, 2.0)
        _number(self, "repetition_penalty", 1e-3, 100.0)
        if self.seed is not None:
            _whole(self, "seed", -(2**63), 2**64 - 1)
        if self.max_tokens is not None:
            _whole(self, "max_tokens", 1, 2**31 - 1)
        _whole(self, "min_tokens", 0, 2**31 - 1)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens ({self.min_tokens}) is greater than max_tokens ({self.max_tokens})", param="min_tokens"
            )
        if self.logprobs is not None:
            _whole(self, "logprobs", 0, 1024)
        if len(self.stop) > MAX_STOP_STRINGS:
            raise RequestError(f"stop takes at most {MAX_STOP_STRINGS} strings, got {len(self.stop)}", param="stop")
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise RequestError("each stop string must be a non-empty string", param="stop")
            if len(text) > MAX_STOP_STRING:
                raise RequestError(f"each stop string has at most {MAX_STOP_STRING} characters, not {len(text)}", param="stop")
        if len(self.stop_token_ids) > MAX_STOP_TOKEN_IDS:
            raise RequestError(
                f"stop_token_ids takes at most {MAX_STOP_TOKEN_IDS} tokens, got {len(self.stop_token_ids)}",
                param="stop_token_ids",
            )
        for token in self.stop_token_ids:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < 2**31:
                raise RequestError(f"{token!r} is not a token id", param="stop_token_ids")
        msgspec.structs.force_setattr(self, "bad_words", tuple(map(tuple, self.bad_words)))
        if len(self.bad_words) > MAX_BAD_WORDS or any(not 0 < len(word) <= MAX_BAD_WORD for word in self.bad_words):
            raise RequestError(
                f"bad_words takes at most {MAX_BAD_WORDS} sequences of 1 to {MAX_BAD_WORD} tokens", param="bad_words"
            )
        for token in chain.from_iterable(self.bad_words):
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < 2**31:
                raise RequestError(f"{token!r} is not a token id", param="bad_words")
        if self.bad_words and self.grammar is not None:
            raise RequestError(
                "bad_words cannot be had together with a grammar, which may leave nothing else to say", param="bad_words"
            )
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise RequestError(f"logit_bias takes at most {MAX_LOGIT_BIAS} entries", param="logit_bias")
        for token, bias in self.logit_bias.items():
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < 2**31:
                raise RequestError(f"{token!r} is not a token id", param="logit_bias")
            if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -100.0 <= bias <= 100.0:
                raise RequestError(f"the bias of token {token} must lie in [-100, 100]", param="logit_bias")

    @property
    def greedy(self) -> bool:
        return self.temperature < 1e-5 or self.top_k == 1

    @property
    def penalized(self) -> bool:
        return self.presence_penalty != 0.0 or self.frequency_penalty != 0.0 or self.repetition_penalty != 1.0


def _number(params: SamplingParams, field: str, low: float, high: float) -> None:
    value = getattr(params, field)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value) or not low <= value <= high:
        raise RequestError(f"{field} must be a number in [{low:g}, {high:g}], got {value!r}", param=field)


def _whole(params: SamplingParams, field: str, low: int, high: int) -> None:
    value = getattr(params, field)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise RequestError(f"{field} must be a whole number in [{low}, {high}], got {value!r}", param=field)


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One sequence to continue. ``params.n`` is always 1 here: whoever takes the user's call makes n requests of it.

    ``priority``: lower runs earlier; equal priorities run in order of arrival. ``arrived``: seconds on the
    ``time.monotonic`` clock of the host. ``cache_salt``: requests share cached pages only under one salt.

    ``read``: the prompt is read and not gone on with, for the hidden state of its "last" token behind the final norm, for the
    "mean" over all of its tokens, or for the "likelihoods" of all but the first, with ``params.logprobs`` of the likeliest.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    priority: int = 0
    arrived: float = 0.0
    cache_salt: str = ""
    read: ReadFor = ""


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """The log-probability of one chosen token, its rank (0 = likeliest), and the likeliest ones, best first."""

    logprob: float
    rank: int
    top_ids: list[int]
    top_logprobs: list[float]


class TokenEvent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a request gained in one step. The last event of a request has a ``finish_reason``; none follows it.

    ``token_ids`` holds the tokens sampled since the previous event, a final eos or stop token included
    (``stop_token`` then repeats it, so that the text side can leave it out). ``logprobs`` has one entry a token
    when they were asked for. ``error`` says why for ``finish_reason`` "error". ``num_cached_tokens`` counts the prompt
    tokens that were not computed because their pages were shared; it is right from the first event on.
    """

    request_id: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_token: int | None = None
    logprobs: list[TokenLogprobs] | None = None
    num_cached_tokens: int = 0
    error: str = ""


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of the engine, for /metrics and for tests. Counters only grow; times are seconds in all."""

    num_running: int = 0
    num_waiting: int = 0
    pages_total: int = 0
    pages_free: int = 0
    pages_cached: int = 0  # kept by the cache policy though no request uses them; reclaimable
    requests_finished: dict[str, int] = {}  # by finish reason
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0
    draft_tokens: int = 0  # proposed by a draft proposer and computed
    accepted_draft_tokens: int = 0  # of these, those that turned out right
    steps: int = 0
    steps_replayed: int = 0  # of these, those that a graph backend had recorded
    step_seconds: float = 0.0
    schedule_seconds: float = 0.0
