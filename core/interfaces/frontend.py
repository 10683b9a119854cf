"""A front end: the door through which requests come. It sees the engine as a ``Service`` and nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from core.errors import ExitCode, RequestError
from core.interfaces.parsers import ReasoningParser, ToolParser
from core.interfaces.request import EngineStats, FinishReason, SamplingParams

Pooling = Literal["last", "mean"]


class Tokenizer(Protocol):
    """Text to ids and back. ``special_ids`` are the control tokens that ``skip_special_tokens`` leaves out."""

    vocab_size: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    special_ids: frozenset[int]

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...

    def token_text(self, token_id: int) -> str:
        """One token as text, bytes that are no UTF-8 by themselves replaced by U+FFFD."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """One token as bytes: what the OpenAI API's logprobs "bytes" field wants."""
        ...


class ChatTemplate(Protocol):
    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **kwargs: Any) -> str:
        """The prompt text of a conversation. :raises RequestError: for messages the template does not take."""
        ...


@dataclass(frozen=True)
class TopToken:
    token_id: int
    text: str
    bytes: bytes
    logprob: float


@dataclass(frozen=True)
class TokenInfo:
    """A generated token as the API shows it. ``text_offset`` counts characters from the start of this choice's text."""

    token_id: int
    text: str
    bytes: bytes
    logprob: float
    rank: int
    top: tuple[TopToken, ...]
    text_offset: int = 0


@dataclass(frozen=True)
class TextDelta:
    """What one continuation gained: ``text`` never ends inside a UTF-8 sequence nor inside a possible stop string.

    The last delta of an index has a ``finish_reason``; ``num_*`` counts are totals so far. ``stop_reason`` is the stop
    string or token id that ended it. ``error`` says why when ``finish_reason`` is "error".
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenInfo, ...] | None
    finish_reason: FinishReason | None
    num_prompt_tokens: int
    num_generated_tokens: int
    num_cached_tokens: int = 0
    stop_reason: str | int | None = None
    error: str = ""


@dataclass(frozen=True)
class Health:
    """``alive``: the engine answers. ``ready``: it takes requests (not starting, not draining)."""

    alive: bool
    ready: bool
    detail: str = ""


@dataclass(frozen=True)
class ModelCard:
    """What a front end tells of the model it serves. ``defaults`` are the checkpoint's own sampling defaults.

    ``at_once``: continuations that can run and wait together, so the most a call may ask for; None where that is not known.
    """

    name: str
    served_names: tuple[str, ...]
    max_model_len: int
    vocab: int
    created: int
    defaults: Mapping[str, Any] = field(default_factory=dict)
    at_once: int | None = None


class Composer(Protocol):
    """The composition that is served, and any other that could be: what a page shows. Safe for any number of threads.

    Answers are plain data, as JSON has it, without secrets. Nothing is loaded, fetched or changed by asking.
    """

    def plan(self) -> Mapping[str, Any]:
        """``choices`` (kind, name, plugin, provenance, origin, why), ``settings`` and ``sections`` (name, value, origin, why),
        ``facts``, ``warnings``: what --explain tells.
        """
        ...

    def words(self) -> Mapping[str, Any]:
        """What ``judge`` takes: ``settings`` (key, flag, type, choices, offers, default, bounds) and ``machines``."""
        ...

    def judge(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        """Compose ``settings`` (key -> value) for ``count`` devices of a ``machine`` as a launch would, and say whether it is
        ``ok``, every one of its ``problems`` (rule, severity, what, where, remedies) and the ``command`` that asks for it.
        With ``neighbours``, also which rules would refuse each other choice beside these.

        :raises RequestError: for a setting, value or machine that is not among the ``words``.
        """
        ...


class Service(ABC):
    """The engine as a door sees it: text in, text out, asynchronous. One per process; safe for any number of tasks.

    ``page`` is the folder of the page to show to browsers, and ``composer`` what it may ask of the composition; both None
    where there is none. A front end that is not for browsers leaves them alone. The parsers read calls of tools and reasoning
    in what the model writes; None where the plan has none.
    """

    card: ModelCard
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    page: Path | None = None
    composer: Composer | None = None
    tool_parser: ToolParser | None = None
    reasoning_parser: ReasoningParser | None = None

    @abstractmethod
    def generate(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        request_id: str,
        priority: int = 0,
        cache_salt: str = "",
    ) -> AsyncIterator[TextDelta]:
        """Run one request (``params.n`` continuations, their deltas interleaved by ``index``).

        Closing the iterator early aborts what is still running. Validation happens before the first delta.

        :raises RequestError: for a request that cannot be served (an empty prompt, a prompt beyond the context, a full queue:
            ``status`` 429).
        :raises EngineDeadError: when the engine is gone, also in the middle of a stream.
        """

    async def embed(self, prompt_token_ids: Sequence[int], *, pooling: Pooling = "last") -> list[float]:
        """What the model makes of a prompt: the last token's hidden state behind the final norm, or the mean over all of
        them, divided by its length so that it has length 1.

        :raises RequestError: as ``generate`` does; and where this engine gives no hidden states.
        """
        raise RequestError("this server gives no embeddings", code="unsupported_parameter")

    async def score(self, prompt_token_ids: Sequence[int], most: int = 0) -> list[TokenInfo]:
        """How likely each token of a prompt is behind those before it, with the ``most`` likeliest. The first is left out:
        nothing is before it.

        :raises RequestError: as ``generate`` does.
        """
        raise RequestError("this server does not tell how likely a prompt is", code="unsupported_parameter")

    def template(self, source: str) -> ChatTemplate:
        """A chat template that a request brings itself, in Jinja's notation.

        :raises RequestError: with ``param`` "chat_template", for one that does not parse.
        """
        raise RequestError("this server takes no chat templates from requests", param="chat_template")

    @abstractmethod
    async def abort(self, request_id: str) -> bool:
        """End a request by id; its iterator finishes with ``finish_reason`` "abort". False when there is none."""

    @abstractmethod
    def health(self) -> Health:
        """Costs nothing: reads the last known state."""

    @abstractmethod
    async def stats(self) -> EngineStats:
        """The engine's own counters, asked for now."""

    @abstractmethod
    async def drain(self, timeout: float | None = None) -> None:
        """Take no new requests, let the running ones finish (for at most ``timeout`` seconds), then return."""

    @abstractmethod
    async def wait_dead(self) -> str:
        """Returns, with the reason, when the engine is gone for good: it died and is not to be restarted."""


class FrontEnd(ABC):
    """``processes``: over how many it is spread. It runs in this one, and what ``beside`` gives in each of the others."""

    processes: int = 1

    @abstractmethod
    def run(self, service: Service) -> ExitCode:
        """Serve until told to stop (SIGTERM, SIGINT) or until the engine is gone. Owns the process's event loop.

        The order at a stop: refuse new work, ``service.drain``, return. The launcher ends the engine afterwards.
        """

    def close(self) -> None:  # noqa: B027 - most have nothing to give back
        """Give back what ``create`` took (a port), called in every case, also when ``run`` never was."""

    def beside(self, number: int) -> AbstractContextManager[tuple[FrontEnd, tuple[int, ...]]]:
        """The same door in another process, the ``number``-th from 1 on: a front end that can be pickled and runs there, and
        the descriptors that it needs of this one, which are closed here with the block.

        When this one stops, it sees that the others do.
        """
        raise NotImplementedError(f"{type(self).__name__} runs in one process")
