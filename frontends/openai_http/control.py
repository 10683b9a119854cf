"""What an operator does to a running server: end requests, take no new ones for a while, take them again.

Paths and bodies are FastDeploy's. Where keys are wanted they are wanted here too.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from fastapi import FastAPI
from pydantic import model_validator
from pydantic_core import PydanticCustomError
from starlette.requests import Request
from starlette.responses import Response

from core.errors import RequestError
from frontends.openai_http.body import read_json
from frontends.openai_http.deltas import while_connected
from frontends.openai_http.door import Door
from frontends.openai_http.errors import response_to
from frontends.openai_http.schema import Wire
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
        body = await read_json(request, AbortBody, door.section.max_request_bytes)
        names = None if body.abort_all else body.req_ids or []
        aborted, missing = await door.abort(names)
        for others, not_theirs in await _others(door, "abort", names):
            aborted |= others
            missing = [name for name in missing if name in not_theirs]
        told = [{"request_id": call_id, "output_token_count": count} for call_id, count in aborted.items()]
        return _done({"aborted": told, "not_found": missing})

    @app.post("/v1/pause")
    async def pause(request: Request) -> Response:
        """New calls are refused with 503. Running ones are ended as by an abort, or with ``?mode=wait`` waited for."""
        mode = request.query_params.get("mode", "abort")
        if mode not in MODES:
            raise RequestError(f"mode is {' or '.join(MODES)}, not {mode[:40]!r}", param="mode")
        door.paused = True
        await _others(door, "pause", True)
        if mode == "abort":
            await door.abort(None)
            await _others(door, "abort")
        async for _ in request.stream():  # a body may be there; it says nothing
            pass
        await while_connected(request.receive, _idle(door))
        return _done({"is_paused": True})

    @app.post("/v1/resume")
    async def resume() -> Response:
        door.paused = False
        await _others(door, "pause", False)
        return _done({"is_paused": False})

    @app.api_route("/v1/is_paused", methods=["GET", "HEAD"])
    async def is_paused() -> Response:
        return _done({"is_paused": door.paused})


def answers(door: Door) -> Answers:
    """To what the other processes at this door ask."""

    async def abort(names: list[str] | None) -> Any:
        return await door.abort(names)

    async def pause(paused: bool) -> None:
        door.paused = paused

    async def is_paused(_: None) -> bool:
        return door.paused

    async def idle(_: None) -> None:
        await door.idle()

    async def metrics(_: None) -> Any:
        return door.metrics.samples()

    return {"abort": abort, "pause": pause, "is_paused": is_paused, "idle": idle, "metrics": metrics}


async def _others(door: Door, what: str, about: Any = None, **patience: float | None) -> list[Any]:
    return [] if door.together is None else await door.together.ask(what, about, **patience)


async def _idle(door: Door) -> None:
    await door.idle()
    await _others(door, "idle", patience=None)


def _done(result: dict[str, Any]) -> Response:
    body = {"request_id": f"control-{uuid4().hex}", "status": "success", "error_message": None, "result": result}
    return response_to(200, body)
