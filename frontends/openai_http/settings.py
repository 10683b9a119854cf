"""The settings of the OpenAI-compatible HTTP server."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, SecretStr, field_validator

from core.offers import Section


class HttpSettings(Section, frozen=True):
    """``[openai_http]``."""

    host: str = Field(default="127.0.0.1", min_length=1, description="address to listen on; 0.0.0.0 for every interface")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 picks a free one and prints it")
    metrics_port: int | None = Field(
        default=None, ge=0, le=65535, description="port of its own for /metrics, and for nothing else; default: the server's"
    )
    api_server_count: int = Field(
        default=1, ge=1, le=64, description="processes that answer at the port, beside one engine; each reads and writes text"
    )
    max_request_bytes: int = Field(
        default=16 << 20, ge=1024, description="largest request body; a larger one is refused with 413"
    )
    max_concurrency: int = Field(default=4096, ge=1, description="generation calls in flight; one more is refused with 429")
    api_key: tuple[SecretStr, ...] = Field(
        default=(), description="keys, one of which every request must show; NAME=KEY names it in logs; none: everybody may ask"
    )
    api_key_file: str | None = Field(default=None, description="a file of such keys, one a line; # begins a comment")
    operator_key: tuple[SecretStr, ...] = Field(
        default=(),
        description="keys that may also pause the server and end others' calls; "
        "none: where no key is wanted and the host is a loopback address everybody may, elsewhere nobody",
    )
    priorities: Literal["none", "lower", "all"] = Field(
        default="lower",
        description="what a request may say of its rank: nothing, that others go first (0 and above), or anything",
    )
    requests_per_minute: int | None = Field(
        default=None, ge=1, description="posts that one key, or without keys one address, may send; default: any number"
    )
    tokens_per_minute: int | None = Field(
        default=None, ge=1, description="prompt and generated tokens that it may use; what goes beyond is waited off"
    )
    max_waiting_time: float | None = Field(
        default=None, gt=0, description="seconds a call may wait for its first token before it is refused; default: any time"
    )
    allowed_origins: tuple[str, ...] = Field(
        default=(), description="origins whose pages may ask from a browser; * for all; none: no CORS header is ever sent"
    )
    allowed_methods: tuple[str, ...] = Field(default=("*",), description="methods that such pages may use")
    allowed_headers: tuple[str, ...] = Field(default=("*",), description="headers that such pages may send")
    allow_credentials: bool = Field(default=False, description="let such pages send cookies and the like")
    ssl_certfile: str | None = Field(default=None, description="certificate chain of the server, PEM; with it https is spoken")
    ssl_keyfile: str | None = Field(default=None, description="its private key, PEM; default: it is in ssl_certfile")
    access_log: bool = Field(default=False, description="log a line for every answer: never what was asked or said")
    otlp_traces_endpoint: str | None = Field(
        default=None, description="where traces of requests are sent, OTLP over HTTP; default: there are none"
    )
    compat: Literal["none", "fastdeploy"] = Field(
        default="none", description="count, stop and refuse as that server does, where it does otherwise than OpenAI's"
    )
    max_logprobs: int = Field(default=20, ge=0, le=1024, description="most alternatives a token that logprobs may ask for")
    trust_request_chat_template: bool = Field(
        default=False,
        description="take chat templates from requests; they run in a sandbox, and may still cost much time and memory",
    )

    @field_validator("otlp_traces_endpoint")
    @classmethod
    def _is_an_address(cls, endpoint: str | None) -> str | None:
        """What is none would be found out when the first spans are sent, and told in the log alone."""
        if endpoint is not None and re.match(r"https?://[^/\s]", endpoint) is None:
            raise ValueError("no address such as http://127.0.0.1:4318/v1/traces")
        return endpoint
