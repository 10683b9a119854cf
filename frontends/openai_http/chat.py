"""``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from core.errors import RequestError
from core.interfaces.frontend import ChatTemplate, TextDelta, TokenInfo
from frontends.openai_http.body import read_body
from frontends.openai_http.deltas import while_connected
from frontends.openai_http.door import Door
from frontends.openai_http.generation import LOWEST_LOGPROB, Form, Gathered, answer, encode
from frontends.openai_http.outline import Gained, Outline, outline, template_fields
from frontends.openai_http.params import chat_names, chat_params, check_limits, prompt_logprobs, renamed
from frontends.openai_http.prompt_logprobs import WithPromptLogprobs, scores
from frontends.openai_http.schema import ChatBody, Message
from frontends.openai_http.token_ids import WithTokenIds

REASONING = ("reasoning_content", "reasoning")  # as most servers name it, and as newer ones do


class ChatForm:
    """``outline`` says how each of the ``n`` outputs is read."""

    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, outline: Outline, n: int) -> None:
        self._outline = outline
        self._readings = [outline.reading() for _ in range(n)]

    def opening(self, choice: int) -> dict[str, Any]:
        return self._chunk(choice, {"role": "assistant", "content": ""})

    def piece(self, choice: int, delta: TextDelta) -> dict[str, Any] | None:
        if self._outline.plain:
            chunk = self._chunk(choice, {"content": delta.text})
        else:
            gained = self._readings[choice].take(delta.text, delta.token_ids, delta.num_generated_tokens)
            if not gained and not delta.logprobs:
                return None
            chunk = self._chunk(choice, _told(gained))
        if delta.logprobs:
            chunk["logprobs"] = _logprobs(delta.logprobs)
        return chunk

    def closing(self, choice: int, delta: TextDelta) -> dict[str, Any]:
        """What was held until the end comes with the reason of it."""
        reading = self._readings[choice]
        held = reading.end(delta.finish_reason)
        reason = {"finish_reason": reading.finish_reason(delta.finish_reason), "stop_reason": delta.stop_reason}
        return self._chunk(choice, _told(held)) | reason

    def whole(self, choice: int, gathered: Gathered) -> dict[str, Any]:
        assert gathered.last is not None
        reading = self._readings[choice]
        reading.take(gathered.text, gathered.ids, len(gathered.ids))
        reading.end(gathered.last.finish_reason)
        message: dict[str, Any] = {"role": "assistant", "content": reading.text, "refusal": None}
        if self._outline.reasoning_parser is not None:
            message |= dict.fromkeys(REASONING, reading.reasoning or None)
        if reading.calls:
            message["content"] = reading.text or None
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in reading.calls
            ]
        return {
            "index": choice,
            "message": message,
            "logprobs": _logprobs(gathered.infos) if gathered.infos else None,
            "finish_reason": reading.finish_reason(gathered.last.finish_reason),
            "stop_reason": gathered.last.stop_reason,
        }

    def usage_details(self) -> dict[str, int] | None:
        if self._outline.reasoning_parser is None:
            return None
        return {"reasoning_tokens": sum(reading.reasoning_tokens for reading in self._readings)}

    def _chunk(self, choice: int, delta: dict[str, Any]) -> dict[str, Any]:
        return {"index": choice, "delta": delta, "logprobs": None, "finish_reason": None}


def add_routes(app: FastAPI, door: Door) -> None:
    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        body = await door.reading(read_body(request, ChatBody, door.intake))
        model = door.model_named(body.model)
        params = chat_params(body, door.service.card.defaults, door.section.max_logprobs, door.service.tokenizer)
        prompt = await chat_prompt(door, body)
        outlined = outline(door.service, body, prompt)
        params = outlined.guided(params)
        call = door.call(body, "chatcmpl-", model, [prompt], params)
        try:
            check_limits(door.service.card, prompt, params)
            form: Form = (chat := ChatForm(outlined, params.n))
            most = prompt_logprobs(body, door.section.max_logprobs)
            if most is not None:
                scored = await while_connected(request.receive, scores(door, call, most))
                form = WithPromptLogprobs(form, scored, most, params.n)
            if body.return_token_ids:
                form = WithTokenIds(form, call.prompts, params.n)
            return await answer(door, request, call, form, usage_details=chat.usage_details)
        except RequestError as error:
            raise renamed(error, chat_names(body) | {"grammar": outlined.field}) from None


async def chat_prompt(door: Door, body: ChatBody) -> list[int]:
    """The ids that a conversation begins with. :raises RequestError: where the template does not take it."""
    if body.prompt_token_ids is not None:
        return body.prompt_token_ids
    goes_on = bool(body.continue_final_message)
    if goes_on and body.add_generation_prompt and "add_generation_prompt" in body.model_fields_set:
        raise RequestError(
            "a message that is continued has no generation prompt after it: leave one of both out",
            param="continue_final_message",
        )
    kwargs = {"add_generation_prompt": body.add_generation_prompt and not goes_on, **template_fields(door.service, body)}
    template = _template(door, body)
    if goes_on:
        text = _open_ended(door, body.messages, kwargs, template)
    else:
        text = render(door, body.messages, kwargs, template)
    return await encode(door.service.tokenizer, text, add_special_tokens=bool(body.add_special_tokens))


def _template(door: Door, body: ChatBody) -> ChatTemplate | None:
    """The request's own template, if it brings one."""
    if body.chat_template is None:
        return None
    if not door.section.trust_request_chat_template:
        raise RequestError(
            "this server takes no chat templates from requests: it would have to be started with --trust-request-chat-template",
            param="chat_template",
            code="unsupported_parameter",
        )
    return door.service.template(body.chat_template)


def _open_ended(door: Door, messages: Sequence[Message], kwargs: dict[str, Any], template: ChatTemplate | None) -> str:
    """The text up to the end of the final message, which the answer is to go on with."""
    end = uuid4().hex  # no text has it: what the template writes after the message may look like the message
    final = (messages[-1].content or "").rstrip()  # many templates strip what they write
    marked = messages[-1].model_copy(update={"content": final + end})
    text, *after = render(door, [*messages[:-1], marked], kwargs, template).split(end)
    if not final or len(after) != 1:
        raise RequestError(
            "the final message is not in the prompt as it was given, so it cannot be continued", param="continue_final_message"
        )
    return text


def render(door: Door, messages: Sequence[Message], kwargs: dict[str, Any], template: ChatTemplate | None = None) -> str:
    """The text of a conversation. :raises RequestError: when the template does not take it, or there is none."""
    template = template or door.service.chat_template
    if template is None:
        raise RequestError(
            "this model has no chat template: use /v1/completions, or start the server with --chat-template",
            param="messages",
            code="no_chat_template",
        )
    if reserved := kwargs.keys() & {"messages", "self"}:
        raise RequestError(f"{reserved.pop()} cannot be given to the template", param="chat_template_kwargs")
    try:
        return template.render([message.for_template() for message in messages], **kwargs)
    except RequestError as error:
        raise RequestError(error.message, param=error.param or "messages", code=error.code, status=error.status) from None


def _told(gained: Gained) -> dict[str, Any]:
    """What a delta says of it."""
    told: dict[str, Any] = {}
    if gained.reasoning:
        told |= dict.fromkeys(REASONING, gained.reasoning)
    if gained.text:
        told["content"] = gained.text
    if gained.calls:
        told["tool_calls"] = [
            {"index": call.index, "function": {"arguments": call.arguments}}
            if call.id is None
            else {
                "index": call.index,
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in gained.calls
        ]
    return told


def _logprobs(infos: tuple[TokenInfo, ...] | list[TokenInfo]) -> dict[str, Any]:
    return {
        "content": [logprob_of(info) for info in infos],
        "refusal": None,
    }


def logprob_of(info: TokenInfo) -> dict[str, Any]:
    """A token and the likeliest in its place, as chats and responses tell of them."""
    top = [_token(each.text, each.bytes, each.logprob) for each in info.top]
    return _token(info.text, info.bytes, info.logprob) | {"top_logprobs": top}


def _token(text: str, raw: bytes, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": max(logprob, LOWEST_LOGPROB), "bytes": list(raw)}
