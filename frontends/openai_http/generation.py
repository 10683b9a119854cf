"""From a call to its answer, whole or streamed. What chats and completions have in common; a ``Form`` is how they differ."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from core.errors import EngineDeadError, RequestError
from core.interfaces.frontend import TextDelta, TokenInfo, Tokenizer
from frontends.openai_http.deltas import Deltas, Numbered, while_connected
from frontends.openai_http.door import Call, Door
from frontends.openai_http.errors import GenerationError, StoppingError, describe, response_to
from frontends.openai_http.metrics import Stopwatch
from frontends.openai_http.sse import DONE, ChunkWriter, EventStream, event

log = logging.getLogger("dovetail.http")
LOWEST_LOGPROB = -9999.0  # JSON has no minus infinity
_LONG_TEXT = 20_000  # characters, or tokens; tokenizing more than this would hold up every stream for milliseconds


@dataclass
class Gathered:
    """One choice so far. ``number`` is its prompt's place in the call."""

    number: int
    texts: list[str] = field(default_factory=list)
    infos: list[TokenInfo] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    last: TextDelta | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)


class Form(Protocol):
    """How a route words its answer: each method gives one entry of ``choices``; a piece may be held for later ones."""

    object: str
    chunk_object: str

    def opening(self, choice: int) -> dict[str, Any] | None: ...

    def piece(self, choice: int, delta: TextDelta) -> dict[str, Any] | None: ...

    def closing(self, choice: int, delta: TextDelta) -> dict[str, Any]: ...

    def whole(self, choice: int, gathered: Gathered) -> dict[str, Any]: ...


class Progress:
    """What has come of a call's choices; keeps the text only for an answer that is given whole."""

    def __init__(
        self,
        call: Call,
        watch: Stopwatch,
        usage_details: Callable[[], dict[str, int] | None] = lambda: None,
        *,
        keep_text: bool,
    ) -> None:
        self._n = call.params.n
        self._watch = watch
        self._usage_details = usage_details
        self._keep_text = keep_text
        self.failure: GenerationError | None = None
        self.choices = [Gathered(number) for number in range(len(call.prompts)) for _ in range(self._n)]

    def take(self, batch: list[Numbered]) -> list[tuple[int, TextDelta]]:
        """The batch by place in ``choices``. ``failure`` is set when the engine gave one up; its last text is in the batch."""
        taken = []
        for number, delta in batch:
            self._watch.tokens(number, delta.index, len(delta.token_ids))
            if delta.finish_reason == "error":
                self.failure = GenerationError(delta.error or "the engine could not finish the request")
            choice = number * self._n + delta.index
            gathered = self.choices[choice]
            gathered.last = delta
            if self._keep_text:
                gathered.texts.append(delta.text)
                gathered.infos += delta.logprobs or ()
                gathered.ids += delta.token_ids
            taken.append((choice, delta))
        return taken

    def done(self) -> None:
        """Call it at the end. :raises GenerationError: when the deltas ended before every choice did."""
        if any(gathered.last is None or gathered.last.finish_reason is None for gathered in self.choices):
            raise GenerationError("the engine ended the request without finishing it")
        self._watch.done()

    def usage(self) -> dict[str, Any]:
        prompts: dict[int, tuple[int, int]] = {}
        generated = 0
        for gathered in self.choices:
            if (last := gathered.last) is not None:
                # Continuations share what one of them computed: it is cached where all of them found it.
                _, cached = prompts.get(gathered.number, (0, last.num_cached_tokens))
                prompts[gathered.number] = (last.num_prompt_tokens, min(cached, last.num_cached_tokens))
                generated += last.num_generated_tokens
        prompt = sum(tokens for tokens, _ in prompts.values())
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
            "prompt_tokens_details": {"cached_tokens": sum(cached for _, cached in prompts.values())},
        }
        details = self._usage_details()
        return usage if details is None else usage | {"completion_tokens_details": details}


async def answer(
    door: Door,
    request: Request,
    call: Call,
    form: Form,
    choosing: Callable[[list[Gathered]], list[Gathered]] = list,
    usage_details: Callable[[], dict[str, int] | None] = lambda: None,
) -> Response:
    """``choosing``: which of the choices are told, of an answer that is given whole. ``usage_details``: which of the tokens
    that were generated are of a kind of their own, as far as it has come.

    :raises RequestError, EngineDeadError, StoppingError, GenerationError: as long as nothing has been sent.
    """
    watch = Stopwatch(door.metrics)
    deltas = door.begin(call)
    progress = Progress(call, watch, usage_details, keep_text=not call.stream)
    headers = {"x-request-id": call.id}
    streaming = False
    try:
        if not call.stream:
            await while_connected(request.receive, collect(deltas, progress))
            choices = [form.whole(choice, gathered) for choice, gathered in enumerate(choosing(progress.choices))]
            return response_to(200, _shared(door, call, form.object) | {"choices": choices, "usage": progress.usage()}, headers)
        # The status line waits for the first delta, so that a refusal can still be a status.
        first = await while_connected(request.receive, deltas.batch())
        taken = progress.take(first)
        if progress.failure is not None:
            raise progress.failure
        chunks = ChunkWriter(_shared(door, call, form.chunk_object), usage=call.include_usage)
        events = _events(call, form, deltas, progress, chunks, taken)
        streaming = True
        return EventStream(events, headers, lambda: door.finish(call))
    finally:
        if not streaming:
            await door.finish(call)


async def encode(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    if len(text) < _LONG_TEXT:
        return tokenizer.encode(text, add_special_tokens=add_special_tokens)
    return await asyncio.to_thread(tokenizer.encode, text, add_special_tokens=add_special_tokens)


async def decode(tokenizer: Tokenizer, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
    if len(ids) < _LONG_TEXT:
        return tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
    return await asyncio.to_thread(tokenizer.decode, ids, skip_special_tokens=skip_special_tokens)


def _shared(door: Door, call: Call, kind: str) -> dict[str, Any]:
    return {
        "id": call.id,
        "object": kind,
        "created": call.created,
        "model": call.model,
        "system_fingerprint": door.fingerprint,
    }


async def collect(deltas: Deltas, progress: Progress) -> None:
    """All of a call that is answered whole. :raises GenerationError: when it did not come to its end."""
    while batch := await deltas.batch():
        progress.take(batch)
        if progress.failure is not None:
            raise progress.failure
    progress.done()


async def _events(
    call: Call, form: Form, deltas: Deltas, progress: Progress, chunks: ChunkWriter, taken: list[tuple[int, TextDelta]]
) -> AsyncGenerator[bytes, None]:
    def chunk(choice: dict[str, Any]) -> bytes:
        return chunks.with_usage(choice, progress.usage()) if call.continuous_usage else chunks.choice(choice)

    opened = (form.opening(choice) for choice in range(len(progress.choices)))
    ready = [chunk(choice) for choice in opened if choice is not None]
    try:
        while True:
            for choice, delta in taken:
                if (delta.text or delta.logprobs or call.every_token) and (piece := form.piece(choice, delta)) is not None:
                    ready.append(chunk(piece))
                if delta.finish_reason not in (None, "error"):
                    ready.append(chunk(form.closing(choice, delta)))
            if ready:
                yield b"".join(ready)
                ready.clear()
            if progress.failure is not None:
                raise progress.failure
            if not (batch := await deltas.batch()):
                break
            taken = progress.take(batch)
        progress.done()
    except Exception as error:
        if not isinstance(error, (RequestError, EngineDeadError, StoppingError, GenerationError)):
            log.exception("%s: a stream broke", call.id)
        yield event(describe(error)[1])
        return
    if call.include_usage:
        ready.append(chunks.with_usage(None, progress.usage()))
    ready.append(DONE)
    yield b"".join(ready)
