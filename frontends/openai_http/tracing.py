"""Traces on request: a span for every answer, sent by OTLP over HTTP to ``--otlp-traces-endpoint``.

A request's ``traceparent`` is gone on with. No span has what was asked or said. Nothing is imported
where no traces are wanted.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.errors import UserError
from frontends.openai_http.current import asker

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

SERVICE = "dovetail"
SEND_TIMEOUT = 2  # seconds, retries included: so long a stop may wait for a collector that does not answer
_PARENTS = frozenset({b"traceparent", b"tracestate"})

span: ContextVar[Span | None] = ContextVar("span", default=None)
"""Of the request that is being answered."""


def provider_of(endpoint: str) -> TracerProvider:
    """:raises UserError: where OpenTelemetry is not installed."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as missing:
        raise UserError.of(
            f"traces need {missing.name}, which is not installed",
            "openai_http.otlp_traces_endpoint",
            "pip install 'dovetail-serve[otel]'",
        ) from None
    provider = TracerProvider(resource=Resource.create({"service.name": SERVICE}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=SEND_TIMEOUT)))
    return provider


class Trace:
    """One span for each HTTP request, from its arrival to the last byte of its answer."""

    def __init__(self, app: ASGIApp, provider: TracerProvider) -> None:
        self._app = app
        self._tracer = provider.get_tracer(SERVICE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"] if name in _PARENTS}
        parent = TraceContextTextMapPropagator().extract(carrier)
        current = self._tracer.start_span(scope["method"], parent, SpanKind.SERVER)
        current.set_attribute("http.request.method", scope["method"])
        span.set(current)

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                current.set_attribute("http.response.status_code", message["status"])
                if message["status"] >= 500:
                    current.set_status(Status(StatusCode.ERROR))
                if (given := dict(message["headers"]).get(b"x-request-id")) is not None:
                    current.set_attribute("dovetail.request_id", given.decode("latin-1"))
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            if (route := getattr(scope.get("route"), "path", None)) is not None:
                current.update_name(f"{scope['method']} {route}")
                current.set_attribute("http.route", route)
            if who := asker.get():
                current.set_attribute("dovetail.asker", who)
            current.end()


def note_tokens(prompt: int, generated: int) -> None:
    """How many tokens the call that is being answered has taken and given; nothing without a span."""
    if (current := span.get()) is not None:
        current.set_attribute("gen_ai.usage.input_tokens", prompt)
        current.set_attribute("gen_ai.usage.output_tokens", generated)


def note_first_token() -> None:
    """Now; nothing without a span."""
    if (current := span.get()) is not None:
        current.add_event("first token")
