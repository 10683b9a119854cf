"""``POST /tokenize`` and ``/detokenize``, as vLLM has them: what a text costs, and what tokens say."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI
from pydantic import ValidationError, model_validator
from pydantic_core import PydanticCustomError
from starlette.requests import Request
from starlette.responses import Response

from core.errors import RequestError
from frontends.openai_http.body import read_json
from frontends.openai_http.chat import chat_prompt
from frontends.openai_http.door import Door
from frontends.openai_http.errors import invalid, response_to
from frontends.openai_http.generation import decode, encode
from frontends.openai_http.schema import ChatBody, Message, OfferedTool, Wire


class TokenizeBody(Wire):
    """Either a ``prompt``, or the ``messages`` of a chat with all that its prompt is made of."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None  # for a prompt they are, for a chat they are the template's affair
    add_generation_prompt: bool = True
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[OfferedTool] | None = None
    tool_choice: Any = None
    reasoning_effort: str | None = None
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_of_both(self) -> TokenizeBody:
        if (self.prompt is None) == (not self.messages):
            raise PydanticCustomError("wrong", "give either prompt or messages")
        return self

    def chat(self) -> ChatBody:
        """What a chat would ask for. :raises RequestError: where it could not."""
        try:
            return ChatBody(**{name: getattr(self, name) for name in self.model_fields_set & _OF_A_CHAT})
        except ValidationError as error:
            raise invalid(error) from None


_OF_A_CHAT = TokenizeBody.model_fields.keys() & ChatBody.model_fields.keys()


class DetokenizeBody(Wire):
    model: str | None = None
    tokens: list[int]
    skip_special_tokens: bool = False


def add_routes(app: FastAPI, door: Door) -> None:
    tokenizer, card = door.service.tokenizer, door.service.card

    @app.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        body = await door.reading(read_json(request, TokenizeBody, door.intake))
        door.model_named(body.model)
        if body.prompt is not None:
            ids = await encode(tokenizer, body.prompt, add_special_tokens=body.add_special_tokens is not False)
        else:
            ids = await chat_prompt(door, body.chat())
        answer = {"count": len(ids), "max_model_len": card.max_model_len, "tokens": ids}
        if body.return_token_strs:
            answer["token_strs"] = await asyncio.to_thread(list, map(tokenizer.token_text, ids))
        return response_to(200, answer)

    @app.post("/detokenize")
    async def detokenize(request: Request) -> Response:
        body = await door.reading(read_json(request, DetokenizeBody, door.intake))
        door.model_named(body.model)
        if body.tokens and not 0 <= min(body.tokens) <= max(body.tokens) < card.vocab:
            strange = next(token for token in body.tokens if not 0 <= token < card.vocab)
            raise RequestError(f"token id {strange} is outside the vocabulary of {card.vocab}", param="tokens")
        return response_to(200, {"prompt": await decode(tokenizer, body.tokens, skip_special_tokens=body.skip_special_tokens)})
