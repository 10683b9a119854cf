"""The offer of the OpenAI-compatible HTTP server. Light: FastAPI and uvicorn are imported when the server is made."""

from __future__ import annotations

from collections.abc import Iterable

from core.errors import UserError
from core.hookspecs import hookimpl
from core.interfaces.frontend import FrontEnd
from core.interfaces.rules import Condition, FactRef, Remedy, Rule
from core.offers import Alias, Context, FrontEndOffer
from frontends.openai_http.settings import HttpSettings

PORTS_ALIKE = Rule(
    id="metrics-port-is-the-servers",
    when=(
        Condition("settings.openai_http.metrics_port", "==", FactRef("settings.openai_http.port")),
        Condition("settings.openai_http.metrics_port", "!=", 0),
    ),
    reason="--metrics-port {settings.openai_http.metrics_port} is the server's own port, and is to be one for /metrics alone",
    remedies=(
        Remedy("leave --metrics-port out: the server's own port has /metrics too", {"openai_http.metrics_port": None}),
        Remedy("--metrics-port 0 to have a free one picked", {"openai_http.metrics_port": 0}),
    ),
)


def _counted_in_one(what: str) -> Rule:
    setting = f"openai_http.{what}_per_minute"
    return Rule(
        id=f"{what}-per-minute-in-one-process",
        when=(Condition("settings.openai_http.api_server_count", ">", 1), Condition(f"settings.{setting}", "!=", None)),
        reason=f"the {what} of a minute are counted in one process, and {{settings.openai_http.api_server_count}} answer",
        remedies=(
            Remedy("--api-server-count 1", {"openai_http.api_server_count": 1}),
            Remedy(f"leave {setting} out", {setting: None}),
        ),
    )


def create(context: Context) -> FrontEnd:
    try:
        from frontends.openai_http.server import OpenAIServer
    except ModuleNotFoundError as missing:
        if missing.name not in ("fastapi", "starlette", "uvicorn", "prometheus_client"):
            raise
        raise UserError.of(
            f"the front end openai_http needs {missing.name}, which is not installed",
            "",
            "pip install 'dovetail-serve[http]'",
        ) from None
    return OpenAIServer(context.section or HttpSettings(), drain_timeout=context.settings["drain_timeout"])


@hookimpl
def register_front_ends() -> Iterable[FrontEndOffer]:
    """The server itself."""
    yield FrontEndOffer(
        name="openai_http",
        summary="OpenAI-compatible HTTP server (chat completions, completions, models, health, metrics)",
        settings=HttpSettings,
        create=create,
        rules=(PORTS_ALIKE, *map(_counted_in_one, ("requests", "tokens"))),
        aliases=(
            Alias(flag="--host", sets="host", summary="address to listen on"),
            Alias(flag="--port", sets="port", summary="port to listen on"),
            Alias(flag="--metrics-port", sets="metrics_port", summary="port of its own for /metrics (FastDeploy)"),
            Alias(flag="--api-server-count", sets="api_server_count", summary="processes that answer at the port (vLLM)"),
            Alias(flag="--workers", sets="api_server_count", summary="the same, as FastDeploy spells it"),
            Alias(flag="--max-concurrency", sets="max_concurrency", summary="generation calls in flight (FastDeploy)"),
            Alias(flag="--api-key", sets="api_key", summary="keys, one of which every request must show (FastDeploy, vLLM)"),
            Alias(env="FD_API_KEY", sets="api_key", summary="the same, as FastDeploy spells it"),
            Alias(
                flag="--trust-request-chat-template",
                sets="trust_request_chat_template",
                summary="take chat templates from requests (vLLM)",
            ),
            Alias(
                flag="--max-waiting-time",
                sets="max_waiting_time",
                translates=(("-1", None),),
                summary="seconds a call may wait for its first token; -1 for any time (FastDeploy)",
            ),
            Alias(flag="--otlp-traces-endpoint", sets="otlp_traces_endpoint", summary="where traces are sent (vLLM)"),
            Alias(flag="--compat", sets="compat", summary="behave as another server where it differs: fastdeploy"),
            Alias(flag="--allowed-origins", sets="allowed_origins", summary="origins whose pages may ask (vLLM)"),
            Alias(flag="--allowed-methods", sets="allowed_methods", summary="methods they may use (vLLM)"),
            Alias(flag="--allowed-headers", sets="allowed_headers", summary="headers they may send (vLLM)"),
            Alias(flag="--allow-credentials", sets="allow_credentials", summary="let them send cookies (vLLM)"),
            Alias(flag="--ssl-certfile", sets="ssl_certfile", summary="certificate chain, PEM (vLLM)"),
            Alias(flag="--ssl-keyfile", sets="ssl_keyfile", summary="its private key, PEM (vLLM)"),
            Alias(flag="--max-logprobs", sets="max_logprobs", summary="most alternatives a token (FastDeploy, vLLM)"),
        ),
    )
