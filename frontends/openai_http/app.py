"""The ASGI application: routes over one service. Serve it with anything that speaks ASGI; ``server`` does it with uvicorn."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from core.interfaces.frontend import Service
from frontends.openai_http import (
    chat,
    completions,
    control,
    description,
    embeddings,
    errors,
    fastdeploy,
    info,
    live,
    messages,
    page,
    responses,
    tokens,
)
from frontends.openai_http.door import Door
from frontends.openai_http.edge import REQUEST_ID, Edge
from frontends.openai_http.keys import OPEN, Guard, keys_of, operators_of
from frontends.openai_http.rates import LimitRates
from frontends.openai_http.settings import HttpSettings
from frontends.openai_http.together import Together
from frontends.openai_http.tracing import Trace

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


class MetricsApart:
    """On one port /metrics and nothing else, on all others everything else."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        self._port = port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (scope["server"][1] == self._port) is not (scope["path"] == "/metrics"):
            message = f"there is no {scope['method']} {scope['path'][:200]} on this port"
            await errors.response_to(404, errors.error_body(404, message))(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def create_app(
    service: Service,
    section: HttpSettings | None = None,
    metrics_port: int | None = None,
    traces: TracerProvider | None = None,
    together: Together | None = None,
) -> FastAPI:
    """``app.state.door`` is what a server needs to stop it: ``Door.close`` and ``Door.end_calls``.

    :param metrics_port: the port /metrics has to itself, as bound.
    :param traces: what makes and sends them, where they are asked for.
    :param together: with the other processes that answer at this door.
    """
    door = Door(service, section or HttpSettings(), together)
    app = FastAPI(title="dovetail", version=door.version, openapi_url=None)
    app.state.door = door
    keys, operators = keys_of(door.section), operators_of(door.section)
    files = page.files_of(service.page) if service.page is not None else {}
    # What is added last is passed first.
    if door.rates.limited:
        app.add_middleware(LimitRates, rates=door.rates)
    if len(keys) or len(operators):
        refused = fastdeploy.UNAUTHORIZED if door.section.compat == fastdeploy.NAME else None
        app.add_middleware(Guard, keys=keys, operators=operators, open_paths=OPEN | files.keys(), refused=refused)
    if metrics_port is not None:
        app.add_middleware(MetricsApart, port=metrics_port)
    if door.section.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=door.section.allowed_origins,
            allow_methods=door.section.allowed_methods,
            allow_headers=door.section.allowed_headers,
            allow_credentials=door.section.allow_credentials,
            expose_headers=(REQUEST_ID, "retry-after"),
        )
    app.add_middleware(Edge, metrics=door.metrics, access_log=door.section.access_log)
    if traces is not None:
        app.add_middleware(Trace, provider=traces)
    if door.section.compat == fastdeploy.NAME:
        describing = partial(fastdeploy.refusal_of, max_concurrency=door.section.max_concurrency)
        errors.install(app, door.patience, describing)
    else:
        errors.install(app, door.patience)
    chat.add_routes(app, door)
    completions.add_routes(app, door)
    embeddings.add_routes(app, door)
    responses.add_routes(app, door)
    messages.add_routes(app, door)
    tokens.add_routes(app, door)
    control.add_routes(app, door)
    info.add_routes(app, door)
    description.add_routes(app, door)
    if files:
        live.add_routes(app, door)
        page.add_routes(app, files)
    return app
