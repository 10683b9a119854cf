"""``POST /v1/embeddings``: what the model makes of texts, as vectors of length 1."""

from __future__ import annotations

import base64
from array import array
from collections.abc import Sequence
from typing import Any, Literal
from uuid import uuid4

from fastapi import FastAPI
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from core.errors import RequestError
from frontends.openai_http.body import read_json
from frontends.openai_http.current import asker
from frontends.openai_http.deltas import while_connected
from frontends.openai_http.door import Door
from frontends.openai_http.errors import response_to
from frontends.openai_http.generation import encode
from frontends.openai_http.params import renamed
from frontends.openai_http.schema import Prompt, Whole, Wire

MAX_INPUTS = 2048  # OpenAI's limit


class EmbeddingsBody(Wire):
    """OpenAI's fields, and ``pooling``: the last token's hidden state, or the mean over all of them."""

    model: str | None = None
    input: Prompt
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Whole | None = Field(None, ge=1)
    user: str | None = None
    pooling: Literal["last", "mean"] = "last"
    add_special_tokens: bool | None = None


def add_routes(app: FastAPI, door: Door) -> None:
    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        body = await door.reading(read_json(request, EmbeddingsBody, door.intake))
        model = door.model_named(body.model)
        if body.dimensions is not None:
            raise RequestError(
                "dimensions is not supported: this model's vectors were not trained to be cut short",
                param="dimensions",
                code="unsupported_parameter",
            )
        if len(body.input) > MAX_INPUTS:
            raise RequestError(f"input has {len(body.input)} texts; at most {MAX_INPUTS} are taken", param="input")
        door.admit()
        special = body.add_special_tokens is not False
        prompts = [await _ids(door, each, special) for each in body.input]
        count = sum(map(len, prompts))
        door.rates.charge(asker.get(), count)
        try:
            reading = door.reading_call(f"embd-{uuid4().hex}", _embedded(door, prompts, body.pooling))
            vectors = await while_connected(request.receive, reading)
        except RequestError as error:
            raise renamed(error, {"prompt": "input"}) from None
        data = [
            {"object": "embedding", "index": index, "embedding": _shown(vector, body.encoding_format)}
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": count, "total_tokens": count}
        return response_to(200, {"object": "list", "data": data, "model": model, "usage": usage})


async def _ids(door: Door, text: str | list[int], special: bool) -> list[int]:
    return text if not isinstance(text, str) else await encode(door.service.tokenizer, text, add_special_tokens=special)


async def _embedded(door: Door, prompts: Sequence[list[int]], pooling: Literal["last", "mean"]) -> list[list[float]]:
    """One after the other, so that what is generated meanwhile is held up by one prompt at most."""
    return [await door.service.embed(prompt, pooling=pooling) for prompt in prompts]


def _shown(vector: list[float], form: str) -> Any:
    """As a list, or its float32 bytes, little-endian, in base64: what OpenAI's client asks for."""
    if form == "float":
        return vector
    floats = array("f", vector)
    if array("H", [1]).tobytes() != b"\x01\x00":
        floats.byteswap()
    return base64.b64encode(floats.tobytes()).decode()
