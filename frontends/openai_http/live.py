"""What a dashboard asks: figures of this moment, the plan that is served, and how another one would be judged."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from prometheus_client import Metric
from pydantic import Field
from starlette.responses import Response

from core.errors import RequestError
from core.interfaces.frontend import Composer
from frontends.openai_http.body import read_json
from frontends.openai_http.door import Door
from frontends.openai_http.errors import response_to
from frontends.openai_http.schema import Wire

_NEVER_KEPT = {"cache-control": "no-store"}


class ComposeBody(Wire):
    """``settings`` by key, on ``count`` devices of a ``machine``; ``neighbours``: also what would be refused beside them."""

    settings: dict[str, bool | int | float | str] = Field(default_factory=dict, max_length=200)
    machine: str | None = None
    count: int = 1
    neighbours: bool = False


def add_routes(app: FastAPI, door: Door) -> None:
    began = time.monotonic()
    one_at_a_time = asyncio.Lock()

    async def composed(work: Callable[..., Mapping[str, Any]], *arguments: Any) -> Mapping[str, Any]:
        """Beside the loop, on one thread at most: the others are there to tokenize long prompts."""
        async with one_at_a_time:
            return await asyncio.to_thread(work, *arguments)

    def composer() -> Composer:
        if door.service.composer is None:
            raise RequestError("this server does not know of how it was composed", code="not_found", status=404)
        return door.service.composer

    @app.get("/dashboard/live")
    async def live() -> Response:
        """Counters only grow, latencies are histograms: who looks twice has rates and percentiles of the time between."""
        stats, up = await door.stats()
        others = [] if door.together is None else await door.together.ask("metrics")
        counted = {family.name: family for family in door.metrics.counted(others)}
        figures = {
            "up": up,
            "uptime_seconds": time.monotonic() - began,
            "calls": {"in_flight": door.num_calls, "most": door.section.max_concurrency},
            "engine": msgspec.structs.asdict(stats),
            "latencies": {
                "first_token": _buckets(counted["dovetail_time_to_first_token_seconds"]),
                "inter_token": _buckets(counted["dovetail_inter_token_latency_seconds"]),
                "whole": _buckets(counted["dovetail_e2e_request_latency_seconds"]),
            },
        }
        return response_to(200, figures, _NEVER_KEPT)

    @app.get("/dashboard/plan")
    async def plan() -> Response:
        """What is composed and why: what --explain tells. Secrets are not in it."""
        card = door.service.card
        known = {
            "version": door.version,
            "served_names": door.served_names,
            "max_model_len": card.max_model_len,
            "sampling_defaults": dict(card.defaults),
            "most_logprobs": door.section.max_logprobs,
        }
        return response_to(200, {**await composed(composer().plan), **known}, _NEVER_KEPT)

    @app.get("/dashboard/words")
    async def words() -> Response:
        """What ``/dashboard/compose`` takes."""
        return response_to(200, await composed(composer().words), _NEVER_KEPT)

    @app.post("/dashboard/compose")
    async def compose(request: Request) -> Response:
        """How a launch with these settings would be judged. Nothing is loaded."""
        asked = await door.reading(read_json(request, ComposeBody, door.intake))
        answer = await composed(composer().judge, asked.model_dump(exclude_none=True))
        return response_to(200, answer, _NEVER_KEPT)


def _buckets(histogram: Metric) -> dict[str, Any]:
    """``upper``: bounds in seconds, the last one without; ``counts``: observations in each bucket by itself."""
    upper: list[float | None] = []
    counts: list[int] = []
    seen = 0
    for sample in histogram.samples:
        if not sample.name.endswith("_bucket"):
            continue
        bound = sample.labels["le"]
        upper.append(None if bound == "+Inf" else float(bound))
        counts.append(int(sample.value) - seen)
        seen = int(sample.value)
    return {"upper": upper, "counts": counts}
