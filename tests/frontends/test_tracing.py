"""Traces: one span an answer, going on with the client's trace, and nothing of what was said in it."""

import asyncio
import http.server
import threading

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from frontends.openai_http.app import create_app
from frontends.openai_http.settings import HttpSettings
from frontends.openai_http.tracing import provider_of
from tests.frontends.fake_service import FakeService

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_is_a_span_of_the_clients_trace(stream):
    kept, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))

    async def run():
        app = create_app(FakeService(), traces=provider)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
            body = {"prompt": "a secret", "max_tokens": 3, "stream": stream}
            return await client.post("/v1/completions", json=body, headers=headers), await client.get("/nowhere")

    answer, _ = asyncio.run(run())
    call, nowhere = kept.get_finished_spans()
    assert (call.name, nowhere.name) == ("POST /v1/completions", "GET")
    assert (f"{call.context.trace_id:032x}", f"{call.parent.span_id:016x}") == (TRACE, PARENT)
    assert dict(call.attributes) == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/v1/completions",
        "dovetail.request_id": answer.headers["x-request-id"],
        "gen_ai.usage.input_tokens": 9,
        "gen_ai.usage.output_tokens": 3,
    }
    assert [event.name for event in call.events] == ["first token"]
    assert "secret" not in call.to_json()


def test_spans_are_sent_to_the_endpoint():
    received = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        provider = provider_of(f"http://127.0.0.1:{collector.server_port}/v1/traces")
        provider.get_tracer("x").start_span("a step").end()
        provider.shutdown()
        collector.shutdown()
        thread.join()
    [(path, body)] = received
    assert path == "/v1/traces"
    assert b"a step" in body
    assert b"dovetail" in body


@pytest.mark.parametrize("endpoint", ["", "collector", "localhost:4318", "http://", "file:///x"])
def test_an_endpoint_that_is_no_address(endpoint):
    with pytest.raises(ValueError, match="no address such as http"):
        HttpSettings(otlp_traces_endpoint=endpoint)
