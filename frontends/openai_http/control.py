"""What an operator does to a running server: end requests, take no new ones for a while, take them again.

Paths and bodies are FastDeploy's. Anybody may end calls of one's own; all else is an operator's: who shows such a key, or,
where there are no keys at all, whoever reaches a loopback address and is no page of another site.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any
from uuid import uuid4

from fastapi import FastAPI
from pydantic import model_validator
from pydantic_core import PydanticCustomError
from starlette.requests import Request
from starlette.responses import Response

from core.errors import RequestError
from frontends.openai_http.body import read_json
from frontends.openai_http.current import asker, operator
from frontends.openai_http.deltas import while_connected
from frontends.openai_http.door import Door
from frontends.openai_http.errors import response_to
from frontends.openai_http.schema import Wire
from frontends.openai_http.settings import HttpSettings
from frontends.openai_http.together import Answers

MODES = ("abort", "wait")


class AbortBody(Wire):
    """Some requests, by the id of their answer or by the ``request_id`` they brought, or all there are."""

    req_ids: list[str] | None = None
    abort_all: bool = False

    @model_validator(mode="after")
    def _something(self) -> AbortBody:
        if not self.abort_all and not self.req_ids:
            raise PydanticCustomError("wrong", "give req_ids, or abort_all as true")
        return self


def add_routes(app: FastAPI, door: Door) -> None:
    @app.post("/v1/abort_requests")
    async def abort_requests(request: Request) -> Response:
        """What was generated so far is answered, with the finish reason "abort"."""
        body = await read_json(request, AbortBody, door.intake)
        if body.abort_all:
            _check_operator(door, request, "ends all requests")
        names = None if body.abort_all else body.req_ids or []
        who = None if _is_operator(door, request) else asker.get()
        aborted, missing = await door.abort(names, who)
        for others, not_theirs in await _others(door, "abort", (names, who)):
            aborted |= others
            missing = [name for name in missing if name in not_theirs]
        told = [{"request_id": call_id, "output_token_count": count} for call_id, count in aborted.items()]
        return _done({"aborted": told, "not_found": missing})

    @app.post("/v1/pause")
    async def pause(request: Request) -> Response:
        """New calls are refused with 503. Running ones are ended as by an abort, or with ``?mode=wait`` waited for."""
        _check_operator(door, request, "pauses this server")
        mode = request.query_params.get("mode", "abort")
        if mode not in MODES:
            raise RequestError(f"mode is {' or '.join(MODES)}, not {mode[:40]!r}", param="mode")
        door.paused = True
        await _others(door, "pause", True)
        if mode == "abort":
            await door.abort(None)
            await _others(door, "abort", (None, None))
        async for _ in request.stream():  # a body may be there; it says nothing
            pass
        await while_connected(request.receive, _idle(door))
        return _done({"is_paused": True})

    @app.post("/v1/resume")
    async def resume(request: Request) -> Response:
        _check_operator(door, request, "resumes this server")
        door.paused = False
        await _others(door, "pause", False)
        return _done({"is_paused": False})

    @app.api_route("/v1/is_paused", methods=["GET", "HEAD"])
    async def is_paused() -> Response:
        return _done({"is_paused": door.paused})


def answers(door: Door) -> Answers:
    """To what the other processes at this door ask."""

    async def abort(asked: tuple[list[str] | None, str | None]) -> Any:
        return await door.abort(*asked)

    async def pause(paused: bool) -> None:
        door.paused = paused

    async def is_paused(_: None) -> bool:
        return door.paused

    async def idle(_: None) -> None:
        await door.idle()

    async def metrics(_: None) -> Any:
        return door.metrics.samples()

    return {"abort": abort, "pause": pause, "is_paused": is_paused, "idle": idle, "metrics": metrics}


def _is_operator(door: Door, request: Request) -> bool:
    section = door.section
    if section.operator_key or section.api_key or section.api_key_file is not None:
        return operator.get()
    return is_loopback(section.host) and not _by_strange_page(section, request)


def _by_strange_page(section: HttpSettings, request: Request) -> bool:
    """Whether a browser asks for a page of another site: who reads that page need not know what it asks."""
    origin = request.headers.get("origin")
    if origin is None or origin in section.allowed_origins or "*" in section.allowed_origins:
        return False
    return origin.partition("://")[2] != request.headers.get("host")


def _check_operator(door: Door, request: Request, what: str) -> None:
    if not _is_operator(door, request):
        raise RequestError(
            f"only an operator {what}: show a key that the server was started with as --openai-http-operator-key",
            code="operator_only",
            status=403,
        )


def is_loopback(host: str) -> bool:
    """Whether nobody from another machine can reach it."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _others(door: Door, what: str, about: Any = None, **patience: float | None) -> list[Any]:
    return [] if door.together is None else await door.together.ask(what, about, **patience)


async def _idle(door: Door) -> None:
    await door.idle()
    await _others(door, "idle", patience=None)


def _done(result: dict[str, Any]) -> Response:
    body = {"request_id": f"control-{uuid4().hex}", "status": "success", "error_message": None, "result": result}
    return response_to(200, body)
