"""The ASGI application: routes over one service. Serve it with anything that speaks ASGI; ``server`` does it with uvicorn."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.interfaces.frontend import Service
from frontends.openai_http import chat, completions, errors, info, tokens
from frontends.openai_http.door import Door
from frontends.openai_http.keys import Guard, keys_of
from frontends.openai_http.metrics import Metrics
from frontends.openai_http.settings import HttpSettings


class CountRequests:
    """Counts answers by route and status. A client that left before its answer began counts as 499."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = errors.CLIENT_GONE

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            self._metrics.requests.labels(route, str(status)).inc()


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


def create_app(service: Service, section: HttpSettings | None = None, metrics_port: int | None = None) -> FastAPI:
    """``app.state.door`` is what a server needs to stop it: ``Door.close`` and ``Door.end_calls``.

    :param metrics_port: the port /metrics has to itself, as bound.
    """
    door = Door(service, section or HttpSettings())
    app = FastAPI(title="dovetail", version=door.version, openapi_url=None)
    app.state.door = door
    keys = keys_of(door.section)
    if len(keys):
        app.add_middleware(Guard, keys=keys)
    if metrics_port is not None:
        app.add_middleware(MetricsApart, port=metrics_port)
    app.add_middleware(CountRequests, metrics=door.metrics)
    errors.install(app)
    chat.add_routes(app, door)
    completions.add_routes(app, door)
    tokens.add_routes(app, door)
    info.add_routes(app, door)
    return app
