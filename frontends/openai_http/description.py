"""``GET /openapi.json``: what the API's routes take and answer, made of one table."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response

from frontends.openai_http import answers
from frontends.openai_http.control import AbortBody
from frontends.openai_http.door import Door
from frontends.openai_http.embeddings import EmbeddingsBody
from frontends.openai_http.errors import response_to
from frontends.openai_http.messages import CountBody, MessagesBody
from frontends.openai_http.responses import ResponsesBody
from frontends.openai_http.schema import ChatBody, CompletionBody
from frontends.openai_http.tokens import DetokenizeBody, TokenizeBody

REFERENCE = "#/components/schemas/{model}"
PATH_NAMES = {"name": "a model's name", "response_id": "the id of a response"}


@dataclass(frozen=True)
class Described:
    """One route. ``answer`` is None for plain text; ``events`` says that it can also be a stream of server-sent events."""

    method: str
    path: str
    summary: str
    answer: type[BaseModel] | None
    body: type[BaseModel] | None = None
    events: bool = False
    refusals: type[BaseModel] = answers.Error
    query: tuple[tuple[str, tuple[str, ...]], ...] = ()


ROUTES = (
    Described("post", "/v1/chat/completions", "Go on with a conversation", answers.ChatCompletion, ChatBody, True),
    Described("post", "/v1/completions", "Go on with a text", answers.Completion, CompletionBody, True),
    Described("post", "/v1/responses", "OpenAI's newer form of a chat", answers.ResponseObject, ResponsesBody, True),
    Described(
        "post",
        "/v1/messages",
        "Anthropic's form of a chat",
        answers.AnthropicMessage,
        MessagesBody,
        True,
        answers.AnthropicError,
    ),
    Described(
        "post",
        "/v1/messages/count_tokens",
        "How long a prompt would be",
        answers.TokenCount,
        CountBody,
        refusals=answers.AnthropicError,
    ),
    Described("post", "/v1/embeddings", "What the model makes of texts", answers.Embeddings, EmbeddingsBody),
    Described("get", "/v1/responses/{response_id}", "An earlier answer: none is kept", answers.ResponseObject),
    Described("delete", "/v1/responses/{response_id}", "Forget an answer: none is kept", answers.ResponseObject),
    Described("post", "/tokenize", "Text or a conversation to ids", answers.Tokens, TokenizeBody),
    Described("post", "/detokenize", "Ids to text", answers.Prompt, DetokenizeBody),
    Described("get", "/v1/models", "The names this model answers to", answers.Models),
    Described("get", "/v1/models/{name}", "One of them", answers.Model),
    Described("get", "/version", "The server's version", answers.Version),
    Described("get", "/health", "200 while requests are taken", answers.Status, refusals=answers.Status),
    Described("get", "/ping", "The same", answers.Status, refusals=answers.Status),
    Described("post", "/ping", "The same", answers.Status, refusals=answers.Status),
    Described("get", "/ready", "The same, and 503 while paused", answers.Status, refusals=answers.Status),
    Described("get", "/load", "Generation calls in flight", answers.Load),
    Described("get", "/metrics", "Prometheus' text format", None),
    Described("post", "/v1/abort_requests", "End requests", answers.Control, AbortBody),
    Described("post", "/v1/pause", "Take no requests", answers.Control, query=(("mode", ("abort", "wait")),)),
    Described("post", "/v1/resume", "Take requests again", answers.Control),
    Described("get", "/v1/is_paused", "Whether it takes none", answers.Control),
)


def document(version: str, names: Sequence[str]) -> dict[str, Any]:
    """The whole description, as OpenAPI 3.1.

    :param names: of the model that is served: what a body's ``model`` may be.
    """
    bodies = {route.body for route in ROUTES if route.body is not None}
    answered = {kind for route in ROUTES for kind in (route.answer, route.refusals) if kind is not None}
    models = [(kind, "validation") for kind in bodies] + [(kind, "serialization") for kind in answered]
    keyed, definitions = models_json_schema(models, ref_template=REFERENCE)  # type: ignore[arg-type]
    schemas = definitions["$defs"]
    for kind in bodies:
        if "model" in kind.model_fields:
            optional = [] if kind.model_fields["model"].is_required() else [{"type": "null"}]
            schemas[kind.__name__]["properties"]["model"] = {"anyOf": [{"enum": list(names)}, *optional]}
    paths: dict[str, Any] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method] = _operation(route, keyed)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Dovetail", "version": version, "description": "OpenAI-compatible serving of small language models"},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


EVENT = {  # OpenAPI before 3.2 tells of each event of a stream
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}


def _operation(route: Described, keyed: Any) -> dict[str, Any]:
    content: dict[str, Any] = {"text/plain": {"schema": {"type": "string"}}}
    if route.answer is not None:
        content = {"application/json": {"schema": keyed[route.answer, "serialization"]}}
    if route.events:
        content["text/event-stream"] = {"schema": EVENT}
    refused = {"application/json": {"schema": keyed[route.refusals, "serialization"]}}
    operation: dict[str, Any] = {
        "summary": route.summary,
        "responses": {
            "200": {"description": "the answer", "content": content},
            "4XX": {"description": "refused: the message says why", "content": refused},
            "503": {"description": "not now", "content": refused},
        },
    }
    names = [part[1:-1] for part in route.path.split("/") if part.startswith("{")]
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}, "description": PATH_NAMES[name]}
        for name in names
    ]
    parameters += [{"name": name, "in": "query", "schema": {"enum": list(values)}} for name, values in route.query]
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        schema = keyed[route.body, "validation"]
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation


def add_routes(app: FastAPI, door: Door) -> None:
    @cache
    def whole() -> dict[str, Any]:
        return document(door.version, door.served_names)

    @app.api_route("/openapi.json", methods=["GET", "HEAD"])
    async def openapi(request: Request) -> Response:
        return response_to(200, await asyncio.to_thread(whole))  # made when first asked for, which takes as long as many tokens
