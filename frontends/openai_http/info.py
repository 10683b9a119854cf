"""What the server says of itself: models, health, metrics, version."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from core.errors import EngineDeadError
from frontends.openai_http import fastdeploy
from frontends.openai_http.door import Door
from frontends.openai_http.errors import response_to

READ = ["GET", "HEAD"]  # load balancers look with HEAD


def add_routes(app: FastAPI, door: Door) -> None:
    card = door.service.card
    as_there = door.section.compat == fastdeploy.NAME

    def model(name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": card.created,
            "owned_by": "FastDeploy" if as_there else "dovetail",
            "root": card.name,
            "parent": None,
            "max_model_len": card.max_model_len,
        }

    @app.api_route("/v1/models", methods=READ)
    async def models() -> Response:
        return response_to(200, {"object": "list", "data": [model(name) for name in door.served_names]})

    @app.api_route("/v1/models/{name:path}", methods=READ)
    async def one_model(name: str) -> Response:
        return response_to(200, model(door.model_named(name)))

    async def health() -> Response:
        """200 while requests are taken."""
        state = door.service.health()
        if not state.alive or isinstance(door.closed, EngineDeadError):
            if as_there:
                return Response(status_code=304)
            return response_to(503, {"status": "engine dead", "detail": state.detail or str(door.closed or "")})
        if door.closed is not None or not state.ready:
            detail = state.detail or str(door.closed or "")
            return response_to(404 if as_there else 503, {"status": "not ready", "detail": detail})
        return response_to(200, {"status": "ok"})

    app.add_api_route("/health", health, methods=READ)

    async def ready() -> Response:
        """As health, and 503 too while the server is paused: what a load balancer asks before it sends anything."""
        if door.paused:
            return response_to(503, {"status": "paused", "detail": "POST /v1/resume ends it"})
        return await health()

    app.add_api_route("/ready", ready, methods=READ)
    app.add_api_route("/ping", health, methods=[*READ, "POST"])

    @app.api_route("/load", methods=READ)
    async def load() -> Response:
        """Generation calls in flight, and how many there may be; what the engine makes of them, while it answers."""
        stats, _ = await door.stats()
        return response_to(
            200,
            {
                "server_load": door.num_calls,
                "max_concurrency": door.section.max_concurrency,
                "requests_running": stats.num_running,
                "requests_waiting": stats.num_waiting,
                "kv_pages": stats.pages_total,
                "kv_pages_used": max(0, stats.pages_total - stats.pages_free - stats.pages_cached),
            },
        )

    @app.api_route("/metrics", methods=READ)
    async def metrics() -> Response:
        """The engine's last known figures when it does not answer, with ``dovetail_engine_up`` 0."""
        stats, up = await door.stats()
        others = [] if door.together is None else await door.together.ask("metrics")
        return Response(door.metrics.render(stats, up=up, others=others), media_type=CONTENT_TYPE_LATEST)

    @app.api_route("/version", methods=READ)
    async def version() -> Response:
        return response_to(200, {"version": door.version})
