"""What goes wrong, as OpenAI's error bodies: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from core.errors import EngineDeadError, RequestError
from frontends.openai_http.current import request_id

log = logging.getLogger("dovetail.http")

CLIENT_GONE = 499  # nobody reads it; it is what logs and metrics say
_SHOWN_ERRORS = 5
_SHOWN_PATH = 200  # characters
_TYPES = {
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}
ANTHROPIC = "/v1/messages"
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


Describing = Callable[[Exception], tuple[int, Mapping[str, Any]]]


class StoppingError(RuntimeError):
    """The server has been told to stop: nothing new is taken, and what is left was not finished in time."""


class MalformedError(RequestError):
    """A body of another shape than its route takes."""


class GenerationError(RuntimeError):
    """The engine ended one request with an error and lives on."""


def error_body(status: int, message: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def describe(error: Exception) -> tuple[int, dict[str, Any]]:
    """The status and body that tell a client of ``error``. Nothing of an unforeseen error's text is shown."""
    match error:
        case RequestError():
            code = error.code
            if error.status == 429 and code == "invalid_value":
                code = "rate_limit_exceeded"
            return error.status, error_body(error.status, error.message, param=error.param, code=code)
        case EngineDeadError():
            message = f"the engine is gone: {error}" if str(error) else "the engine is gone"
            return 503, error_body(503, message, code="engine_dead")
        case StoppingError():
            return 503, error_body(503, str(error), code="server_stopping")
        case GenerationError():
            return 500, error_body(500, str(error), code="generation_failed")
        case _:
            return 500, error_body(500, "an internal error; the server's log has the cause", code="internal_error")


def response_to(status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")


def refusal(path: str, status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    """An error in the form that the clients of this path know."""
    anthropic = path.startswith(ANTHROPIC) and isinstance(body.get("error"), dict)
    return response_to(status, anthropic_body(status, body) if anthropic else body, headers)


def anthropic_body(status: int, body: Mapping[str, Any]) -> dict[str, Any]:
    """Anthropic has no field for the parameter: the message names it."""
    told = body["error"]
    kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    message = told["message"]
    if told["param"] is not None and told["param"] not in message:
        message = f"{told['param']}: {message}"
    return {"type": "error", "error": {"type": kind, "message": message}}


def invalid(error: ValidationError) -> RequestError:
    """Pydantic's findings as one error. ``param`` is the first field; every field is in the message."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    texts = []
    for each in found[:_SHOWN_ERRORS]:
        field, text = _path(each["loc"]), each["msg"][:1].lower() + each["msg"][1:]
        texts.append(f"{field}: {text}" if field else text)
    if len(found) > _SHOWN_ERRORS:
        texts.append(f"and {len(found) - _SHOWN_ERRORS} more")
    first = found[0]
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    if first["type"] == "json_invalid":
        code = "invalid_json"
    return MalformedError("; ".join(texts), param=_path(first["loc"]) or None, code=code)


def _path(location: tuple[int | str, ...]) -> str:
    text = ""
    for step in location:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def install(app: FastAPI, patience: Callable[[], int], describing: Describing = describe) -> None:
    """Every way out of a route that is not an answer ends in an error body: OpenAI's, or as ``describing`` says.

    :param patience: seconds after which who was refused for want of room may come again.
    """

    async def known(request: Request, error: Exception) -> Response:
        status, body = describing(error)
        return refusal(request.url.path, status, body, {"retry-after": str(patience())} if status == 429 else None)

    async def unforeseen(request: Request, error: Exception) -> Response:
        # Starlette raises it again, so that the server's log has the traceback.
        return refusal(request.url.path, *describe(error), {"x-request-id": request_id.get()})

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path = request.url.path if len(request.url.path) <= _SHOWN_PATH else f"{request.url.path[:_SHOWN_PATH]}..."
        message = {
            404: f"there is no {request.method} {path}",
            405: f"{path} does not take {request.method}",
        }.get(error.status_code, str(error.detail))
        return refusal(request.url.path, error.status_code, error_body(error.status_code, message), error.headers)

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

    for kind in (RequestError, EngineDeadError, StoppingError, GenerationError):
        app.add_exception_handler(kind, known)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(Exception, unforeseen)
