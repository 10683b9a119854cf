"""The offer of the OpenAI-compatible HTTP server. Light: FastAPI and uvicorn are imported when the server is made."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

from core.errors import UserError
from core.hookspecs import hookimpl
from core.interfaces.frontend import FrontEnd
from core.offers import Alias, Context, FrontEndOffer, Section


class HttpSettings(Section, frozen=True):
    """``[openai_http]``."""

    host: str = Field(default="127.0.0.1", min_length=1, description="address to listen on; 0.0.0.0 for every interface")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 picks a free one and prints it")
    max_request_bytes: int = Field(
        default=16 << 20, ge=1024, description="largest request body; a larger one is refused with 413"
    )
    max_concurrency: int = Field(default=4096, ge=1, description="generation calls in flight; one more is refused with 429")
    max_logprobs: int = Field(default=20, ge=0, le=1024, description="most alternatives a token that logprobs may ask for")


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
        aliases=(
            Alias(flag="--host", sets="host", summary="address to listen on"),
            Alias(flag="--port", sets="port", summary="port to listen on"),
            Alias(flag="--max-concurrency", sets="max_concurrency", summary="generation calls in flight (FastDeploy)"),
            Alias(flag="--max-logprobs", sets="max_logprobs", summary="most alternatives a token (FastDeploy, vLLM)"),
        ),
    )
