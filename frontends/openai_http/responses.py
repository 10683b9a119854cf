"""``POST /v1/responses``: OpenAI's Responses API in its text form. A request becomes the chat it stands for."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from uuid import uuid4

from fastapi import FastAPI
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from core.errors import RequestError
from core.interfaces.frontend import TextDelta, TokenInfo
from frontends.openai_http.blocks import Action, Block, Blocks
from frontends.openai_http.body import read_json
from frontends.openai_http.chat import chat_prompt, logprob_of
from frontends.openai_http.door import Call, Door
from frontends.openai_http.errors import describe
from frontends.openai_http.generation import Gathered
from frontends.openai_http.outline import Outline, outline
from frontends.openai_http.params import chat_names, chat_params, check_limits, check_supported, renamed
from frontends.openai_http.response_items import choice_of, format_of, messages_of, tool_of
from frontends.openai_http.schema import ChatBody, Whole, Wire
from frontends.openai_http.single import Event, tell
from frontends.openai_http.translation import chat_of

_NAMES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "response_format": "text",
    "reasoning_effort": "reasoning",
}
_PREFIXES = {"text": "msg", "reasoning": "rs", "call": "fc"}
_LOGPROBS = "message.output_text.logprobs"  # what ``include`` calls them


class TextOptions(Wire):
    format: dict[str, Any] | None = None


class Reasoning(Wire):
    effort: str | None = None


class ResponsesBody(Wire):
    """OpenAI's fields. Of what this server adds, everything that a chat takes and that is no field here."""

    model: str | None = None
    input: Any
    instructions: str | None = None
    max_output_tokens: Whole | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: Whole | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    stream: bool | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    background: bool | None = None
    truncation: str | None = None
    include: list[str] | None = None
    metadata: dict[str, str] | None = Field(None, max_length=16)
    user: str | None = None
    store: bool | None = None


class ResponseStory:
    """Items: messages of one text part, thoughts where a parser tells them apart, and calls of functions."""

    def __init__(self, call: Call, body: ResponsesBody, outline: Outline) -> None:
        self._call = call
        self._body = body
        self._reading = outline.reading()
        self._blocks = Blocks()
        self._ids: list[str] = []  # of the items
        self._logprobs: dict[int, list[dict[str, Any]]] = {}  # told, by item
        self._untold: list[TokenInfo] = []
        self._with_logprobs = _LOGPROBS in (body.include or ())
        self._number = -1

    def opening(self) -> Iterator[Event]:
        begun = self._response("in_progress", None)
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)

    def piece(self, delta: TextDelta) -> Iterator[Event]:
        if self._with_logprobs:
            self._untold += delta.logprobs or ()
        gained = self._reading.take(delta.text, delta.token_ids, delta.num_generated_tokens)
        yield from self._told(self._blocks.take(gained))

    def closing(self, last: TextDelta, usage: Mapping[str, Any]) -> Iterator[Event]:
        yield from self._told(self._blocks.take(self._reading.end(last.finish_reason)))
        yield from self._told(self._blocks.end())
        status = _status(last)
        kind = "response.completed" if status == "completed" else "response.incomplete"
        yield self._event(kind, response=self._response(status, usage))

    def failing(self, error: Exception) -> Iterator[Event]:
        status, body = describe(error)
        code = "rate_limit_exceeded" if status == 429 else "server_error"
        failed = self._response("failed", None) | {"error": {"code": code, "message": body["error"]["message"]}}
        yield self._event("response.failed", response=failed)

    def whole(self, gathered: Gathered, usage: Mapping[str, Any]) -> dict[str, Any]:
        assert gathered.last is not None
        self._untold = list(gathered.infos) if self._with_logprobs else []
        taken = self._reading.take(gathered.text, gathered.ids, len(gathered.ids))
        for gained in (taken, self._reading.end(gathered.last.finish_reason)):
            deque(self._told(self._blocks.take(gained)), 0)
        deque(self._told(self._blocks.end()), 0)
        return self._response(_status(gathered.last), usage)

    def _told(self, steps: Iterable[tuple[Action, Block, str]]) -> Iterator[Event]:
        for action, block, text in steps:
            if action == "open":
                self._ids.append(f"{_PREFIXES[block.kind]}_{uuid4().hex}")
                yield self._event("response.output_item.added", output_index=block.index, item=self._item(block, None))
                if block.kind == "text":
                    yield self._event("response.content_part.added", **self._place(block), part=_part("", []))
            elif action == "grow":
                yield self._grown(block, text)
            else:
                yield from self._closed(block)

    def _grown(self, block: Block, text: str) -> Event:
        if block.kind == "text":
            logprobs, self._untold = [logprob_of(info) for info in self._untold], []
            self._logprobs.setdefault(block.index, []).extend(logprobs)
            return self._event("response.output_text.delta", **self._place(block), delta=text, logprobs=logprobs)
        if block.kind == "reasoning":
            return self._event("response.reasoning_text.delta", **self._place(block), delta=text)
        place = {"item_id": self._ids[block.index], "output_index": block.index}
        return self._event("response.function_call_arguments.delta", **place, delta=text)

    def _closed(self, block: Block) -> Iterator[Event]:
        place = self._place(block)
        if block.kind == "text":
            logprobs = self._logprobs.get(block.index, [])
            yield self._event("response.output_text.done", **place, text=block.text, logprobs=logprobs)
            yield self._event("response.content_part.done", **place, part=_part(block.text, logprobs))
        elif block.kind == "reasoning":
            yield self._event("response.reasoning_text.done", **place, text=block.text)
        else:
            done = {"item_id": place["item_id"], "output_index": block.index, "name": block.name, "arguments": block.text}
            yield self._event("response.function_call_arguments.done", **done)
        yield self._event("response.output_item.done", output_index=block.index, item=self._item(block, "completed"))

    def _item(self, block: Block, status: str | None) -> dict[str, Any]:
        """As it is announced, without a status; or with all that it says."""
        item = {"id": self._ids[block.index], "status": status or "in_progress"}
        text = block.text if status is not None else ""
        if block.kind == "call":
            return {**item, "type": "function_call", "call_id": block.call_id, "name": block.name, "arguments": text}
        if block.kind == "reasoning":
            content = [{"type": "reasoning_text", "text": text}] if status is not None else []
            return {**item, "type": "reasoning", "summary": [], "content": content}
        parts = [_part(text, self._logprobs.get(block.index, []))] if status is not None else []
        return {**item, "type": "message", "role": "assistant", "content": parts}

    def _output(self, status: str) -> list[dict[str, Any]]:
        """Of an answer that was cut off, so was the last item."""
        items = [self._item(block, "completed") for block in self._blocks.all]
        if items and status != "completed":
            items[-1]["status"] = "incomplete"
        return items

    def _event(self, kind: str, **fields: Any) -> Event:
        self._number += 1
        return {"type": kind, "sequence_number": self._number, **fields}

    def _place(self, block: Block) -> dict[str, Any]:
        return {"item_id": self._ids[block.index], "output_index": block.index, "content_index": 0}

    def _response(self, status: str, usage: Mapping[str, Any] | None) -> dict[str, Any]:
        body, params = self._body, self._call.params
        ended = status == "incomplete"
        return {
            "id": self._call.id,
            "object": "response",
            "created_at": self._call.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if ended else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": self._call.model,
            "output": self._output(status),
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": body.reasoning and body.reasoning.effort, "summary": None},
            "store": False,
            "temperature": params.temperature,
            "text": {"format": (body.text and body.text.format) or {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": params.top_p,
            "truncation": "disabled",
            "usage": None if usage is None else _usage(usage, self._reading.reasoning_tokens),
            "user": body.user,
            "metadata": body.metadata or {},
        }


def add_routes(app: FastAPI, door: Door) -> None:
    @app.post("/v1/responses")
    async def responses(request: Request) -> Response:
        body = await door.reading(read_json(request, ResponsesBody, door.intake))
        chat = _chat(body)
        check_supported(chat)
        model = door.model_named(body.model)
        names = {**chat_names(chat), "prompt": "input"} | _NAMES
        try:
            params = chat_params(chat, door.service.card.defaults, door.section.max_logprobs, door.service.tokenizer)
            prompt = await chat_prompt(door, chat)
            outlined = outline(door.service, chat, prompt)
            params = outlined.guided(params)
            check_limits(door.service.card, prompt, params)
            call = door.call(chat, "resp_", model, [prompt], params)
            return await tell(door, request, call, ResponseStory(call, body, outlined))
        except RequestError as error:
            raise renamed(renamed(error, names), {"response_format": "text"}) from None

    @app.api_route("/v1/responses/{response_id}", methods=["GET", "DELETE"])
    async def stored(response_id: str) -> Response:
        raise _not_stored(response_id, "response_id")


def _chat(body: ResponsesBody) -> ChatBody:
    if body.previous_response_id is not None:
        raise _not_stored(body.previous_response_id, "previous_response_id")
    for name in ("conversation", "prompt", "background"):
        if getattr(body, name):
            raise RequestError(f"{name} is not supported by this server", param=name, code="unsupported_parameter")
    if body.truncation not in (None, "disabled", "auto"):
        raise RequestError(f"truncation is disabled or auto, not {body.truncation[:40]!r}", param="truncation")
    messages = list(messages_of(body.input))
    if body.instructions is not None:
        messages.insert(0, {"role": "system", "content": body.instructions})
    fields = {
        "messages": messages,
        "max_completion_tokens": body.max_output_tokens,
        "response_format": format_of(body.text.format if body.text else None),
        "tools": [tool_of(number, tool) for number, tool in enumerate(body.tools or ())] or None,
        "tool_choice": choice_of(body.tool_choice),
        "reasoning_effort": body.reasoning and body.reasoning.effort,
    }
    if body.top_logprobs is not None or _LOGPROBS in (body.include or ()):
        fields |= {"logprobs": True, "top_logprobs": body.top_logprobs or 0}
    kept = ("temperature", "top_p", "stream", "user", "parallel_tool_calls")
    fields |= {name: getattr(body, name) for name in kept}
    return chat_of(fields, body.model_extra, _NAMES)


def _not_stored(response_id: str, param: str) -> RequestError:
    return RequestError(
        f"there is no response {response_id[:100]!r}: this server keeps none; send the whole conversation as input",
        param=param,
        code=f"{param.removesuffix('_id')}_not_found",
        status=404 if param == "response_id" else 400,
    )


def _status(last: TextDelta) -> str:
    return {"length": "incomplete", "abort": "cancelled"}.get(last.finish_reason or "", "completed")


def _part(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _usage(usage: Mapping[str, Any], reasoning_tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {
            "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
            "cache_write_tokens": 0,
        },
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": usage["total_tokens"],
    }
