"""The body of a request: read up to the limit, parsed and checked in one go."""

from __future__ import annotations

import logging
from typing import TypeVar

from pydantic import ValidationError
from starlette.requests import Request

from core.errors import RequestError
from frontends.openai_http.errors import invalid
from frontends.openai_http.params import check_supported
from frontends.openai_http.schema import GenerationBody, Wire

log = logging.getLogger("dovetail.http")
Body = TypeVar("Body", bound=GenerationBody)
Parsed = TypeVar("Parsed", bound=Wire)
_DISCARDED_LIMITS = 4  # so much more of a body that is too large is read, so that its sender gets to see the answer


async def read_body(request: Request, kind: type[Body], limit: int) -> Body:
    """:raises RequestError: for what is too large, no JSON, or not what the route takes."""
    body = await read_json(request, kind, limit)
    check_supported(body)
    if log.isEnabledFor(logging.DEBUG) and (unknown := body.unknown()):
        log.debug("%s: unknown fields are ignored: %s", request.url.path, ", ".join(unknown))
    return body


async def read_json(request: Request, kind: type[Parsed], limit: int) -> Parsed:
    """:raises RequestError: for what is too large, no JSON, or of another shape."""
    raw = await _read(request, limit)
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise invalid(error) from None


async def _read(request: Request, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size <= limit:
            parts.append(part)
        elif size > _DISCARDED_LIMITS * limit:
            break
    if size > limit:
        raise RequestError(
            f"the request's body is larger than {limit} bytes, the limit of this server",
            code="request_too_large",
            status=413,
        )
    return b"".join(parts)
