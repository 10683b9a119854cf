"""One prompt and one answer, told in a route's own events. What /v1/responses and /v1/messages have in common."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Any, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from core.errors import EngineDeadError, RequestError
from core.interfaces.frontend import TextDelta
from frontends.openai_http.deltas import Deltas, while_connected
from frontends.openai_http.door import Call, Door
from frontends.openai_http.errors import GenerationError, StoppingError, response_to
from frontends.openai_http.generation import Gathered, Progress, collect
from frontends.openai_http.metrics import Stopwatch
from frontends.openai_http.sse import EventStream

log = logging.getLogger("dovetail.http")
Event = Mapping[str, Any]  # its key "type" is also the event's name on the wire
_encode = msgspec.json.Encoder().encode


class Story(Protocol):
    """How a route words one answer: whole, or as the events of a stream, in this order."""

    def opening(self) -> Iterable[Event]: ...

    def piece(self, delta: TextDelta) -> Iterable[Event]: ...

    def closing(self, last: TextDelta, usage: Mapping[str, Any]) -> Iterable[Event]: ...

    def failing(self, error: Exception) -> Iterable[Event]: ...

    def whole(self, gathered: Gathered, usage: Mapping[str, Any]) -> Mapping[str, Any]: ...


async def tell(door: Door, request: Request, call: Call, story: Story) -> Response:
    """:raises RequestError, EngineDeadError, StoppingError, GenerationError: as long as nothing has been sent."""
    watch = Stopwatch(door.metrics)
    deltas = door.begin(call)
    progress = Progress(call, watch, keep_text=not call.stream)
    [gathered] = progress.choices
    headers = {"x-request-id": call.id}
    streaming = False
    try:
        if not call.stream:
            await while_connected(request.receive, collect(deltas, progress))
            return response_to(200, story.whole(gathered, progress.usage()), headers)
        # As for completions: a refusal can be a status until the first delta is there.
        taken = progress.take(await while_connected(request.receive, deltas.batch()))
        if progress.failure is not None:
            raise progress.failure
        streaming = True
        events = _events(call, story, deltas, progress, gathered, taken)
        return EventStream(events, headers, lambda: door.finish(call))
    finally:
        if not streaming:
            await door.finish(call)


async def _events(
    call: Call, story: Story, deltas: Deltas, progress: Progress, gathered: Gathered, taken: list[tuple[int, TextDelta]]
) -> AsyncGenerator[bytes, None]:
    try:
        yield _named(story.opening())
        while True:
            if ready := b"".join(_named(story.piece(delta)) for _, delta in taken if delta.text or delta.logprobs):
                yield ready
            if progress.failure is not None:
                raise progress.failure
            if not (batch := await deltas.batch()):
                break
            taken = progress.take(batch)
        progress.done()
    except Exception as error:
        if not isinstance(error, (RequestError, EngineDeadError, StoppingError, GenerationError)):
            log.exception("%s: a stream broke", call.id)
        yield _named(story.failing(error))
        return
    assert gathered.last is not None
    yield _named(story.closing(gathered.last, progress.usage()))


def _named(events: Iterable[Event]) -> bytes:
    return b"".join(b"event: %b\ndata: %b\n\n" % (event["type"].encode(), _encode(event)) for event in events)
