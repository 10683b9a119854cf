"""Server-sent events: the bytes of one, and the response that writes them until the client has left."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from frontends.openai_http.deltas import while_connected

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


def event(body: Mapping[str, Any]) -> bytes:
    return b"data: " + _encode(body) + b"\n\n"


class ChunkWriter:
    """Chunks that differ in their choice only: what they share is encoded once for the whole stream."""

    def __init__(self, shared: Mapping[str, Any], *, usage: bool) -> None:
        self._head = b"data: " + _encode(shared)[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if usage else b"]}\n\n"

    def choice(self, choice: Mapping[str, Any]) -> bytes:
        return self._head + _encode(choice) + self._tail

    def with_usage(self, choice: Mapping[str, Any] | None, usage: Mapping[str, Any]) -> bytes:
        body = b"" if choice is None else _encode(choice)
        return self._head + body + b'],"usage":' + _encode(usage) + b"}\n\n"


class EventStream(Response):
    """Writes what ``events`` yields, each as one body message, until the client leaves, be it between two of them.

    ``finish`` is called in every case, even if ``events`` was never begun.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes, None], headers: Mapping[str, str], finish: Callable[[], Awaitable[None]]
    ) -> None:
        self._events = events
        self._finish = finish
        self.status_code = 200
        self.background = None
        self.init_headers({**headers, "cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._write(send))
        except ClientDisconnect:
            pass
        finally:
            await self._events.aclose()
            await self._finish()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for chunk in self._events:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
