"""The bytes of bodies on their way in: bounded one by one, all together, and in time."""

from __future__ import annotations

import asyncio
from codecs import BOM_UTF8

from starlette.requests import Request

from core.errors import RequestError

TOGETHER = 16  # as many bodies of the largest size may be on their way at the same time
SILENCE = 60.0  # seconds without a byte
WHOLE = 600.0  # seconds for all of a body
_DISCARDED_LIMITS = 4  # so much more of a body that is too large is read, so that its sender gets to see the answer


class Intake:
    """:param largest: bytes of one body."""

    def __init__(self, largest: int, *, silence: float = SILENCE) -> None:
        self._largest = largest
        self._silence = silence
        self._held = 0  # bytes

    async def read(self, request: Request) -> bytes:
        """:raises RequestError: for what is too large, packed, comes too slowly, or finds no room."""
        if (packed := request.headers.get("content-encoding", "identity")) != "identity":
            raise RequestError(
                f"a body with content-encoding {packed[:40]!r} is not read: send it as it is",
                param="content-encoding",
                code="unsupported_encoding",
                status=415,
            )
        parts: list[bytes] = []
        size = held = 0
        stream = aiter(request.stream())
        try:
            async with asyncio.timeout(WHOLE):
                while size <= _DISCARDED_LIMITS * self._largest:
                    async with asyncio.timeout(self._silence):
                        part = await anext(stream, None)
                    if part is None:
                        break
                    size += len(part)
                    if size <= self._largest:
                        held += len(part)
                        self._held += len(part)
                        self._check()
                        parts.append(part)
        except TimeoutError:
            raise RequestError("the request's body came too slowly: send it again", code="slow_client", status=408) from None
        finally:
            self._held -= held
        if size > self._largest:
            raise RequestError(
                f"the request's body is larger than {self._largest} bytes, the limit of this server",
                code="request_too_large",
                status=413,
            )
        return b"".join(parts).removeprefix(BOM_UTF8)  # some clients begin with it

    def _check(self) -> None:
        if self._held > TOGETHER * self._largest:
            raise RequestError(
                f"bodies of more than {TOGETHER * self._largest} bytes are on their way to this server: try again later",
                code="rate_limit_exceeded",
                status=429,
            )
