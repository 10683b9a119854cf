"""The settings of the OpenAI-compatible HTTP server."""

from __future__ import annotations

from pydantic import Field, SecretStr

from core.offers import Section


class HttpSettings(Section, frozen=True):
    """``[openai_http]``."""

    host: str = Field(default="127.0.0.1", min_length=1, description="address to listen on; 0.0.0.0 for every interface")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 picks a free one and prints it")
    metrics_port: int | None = Field(
        default=None, ge=0, le=65535, description="port of its own for /metrics, and for nothing else; default: the server's"
    )
    max_request_bytes: int = Field(
        default=16 << 20, ge=1024, description="largest request body; a larger one is refused with 413"
    )
    max_concurrency: int = Field(default=4096, ge=1, description="generation calls in flight; one more is refused with 429")
    api_key: tuple[SecretStr, ...] = Field(
        default=(), description="keys, one of which every request must show; NAME=KEY names it in logs; none: everybody may ask"
    )
    api_key_file: str | None = Field(default=None, description="a file of such keys, one a line; # begins a comment")
    max_logprobs: int = Field(default=20, ge=0, le=1024, description="most alternatives a token that logprobs may ask for")
