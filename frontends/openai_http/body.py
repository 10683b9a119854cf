"""The body of a request: read up to the limit, parsed and checked in one go."""

from __future__ import annotations

import logging
from typing import TypeVar

from pydantic import ValidationError
from starlette.requests import Request

from frontends.openai_http.errors import invalid
from frontends.openai_http.intake import Intake
from frontends.openai_http.params import check_supported
from frontends.openai_http.schema import GenerationBody, Wire

log = logging.getLogger("dovetail.http")
Body = TypeVar("Body", bound=GenerationBody)
Parsed = TypeVar("Parsed", bound=Wire)


async def read_body(request: Request, kind: type[Body], intake: Intake) -> Body:
    """:raises RequestError: for what is too large, no JSON, or not what the route takes."""
    body = await read_json(request, kind, intake)
    check_supported(body)
    if log.isEnabledFor(logging.DEBUG) and (unknown := body.unknown()):
        log.debug("%s: unknown fields are ignored: %s", request.url.path, ", ".join(unknown))
    return body


async def read_json(request: Request, kind: type[Parsed], intake: Intake) -> Parsed:
    """:raises RequestError: for what is too large, no JSON, or of another shape."""
    raw = await intake.read(request)
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise invalid(error) from None
