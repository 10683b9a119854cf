"""``POST /v1/messages`` and ``/v1/messages/count_tokens``: Anthropic's Messages API in its text form.

A request becomes the chat it stands for. What goes wrong is told in Anthropic's form, by ``errors``, on every path below.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from fastapi import FastAPI
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from core.errors import RequestError
from core.interfaces.frontend import Service, TextDelta
from frontends.openai_http.blocks import Action, Block, Blocks
from frontends.openai_http.body import read_json
from frontends.openai_http.chat import chat_prompt
from frontends.openai_http.door import Call, Door
from frontends.openai_http.errors import anthropic_body, describe, response_to
from frontends.openai_http.generation import Gathered
from frontends.openai_http.outline import Outline, outline
from frontends.openai_http.params import chat_names, chat_params, check_limits, check_supported, renamed
from frontends.openai_http.schema import ChatBody, Whole, Wire
from frontends.openai_http.single import Event, tell
from frontends.openai_http.translation import REJECTED, chat_of

_NAMES = {"max_completion_tokens": "max_tokens", "stop": "stop_sequences"}
_FOREIGN = ("container", "mcp_servers", "context_management")  # what is done on Anthropic's own machines
_DELTAS = {
    "text": ("text_delta", "text"),
    "reasoning": ("thinking_delta", "thinking"),
    "call": ("input_json_delta", "partial_json"),
}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class Turn(Wire):
    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]]


class CountBody(Wire):
    """What is counted, which is also what is answered."""

    model: str
    messages: list[Turn] = Field(min_length=1)
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None


class MessagesBody(CountBody):
    """Anthropic's fields. Of what this server adds, everything that a chat takes and that is no field here."""

    max_tokens: Whole
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Whole | None = None
    metadata: dict[str, Any] | None = None


class MessageStory:
    """Blocks of text, of thoughts where a parser tells them apart, and of calls."""

    def __init__(self, call: Call, outline: Outline) -> None:
        self._call = call
        self._reading = outline.reading()
        self._blocks = Blocks()

    def opening(self) -> Iterator[Event]:
        usage = _usage({"prompt_tokens": len(self._call.prompts[0]), "completion_tokens": 0})
        yield {"type": "message_start", "message": self._message([], None, None, usage)}
        yield {"type": "ping"}

    def piece(self, delta: TextDelta) -> Iterator[Event]:
        yield from map(_told, self._blocks.take(self._reading.take(delta.text, delta.token_ids, delta.num_generated_tokens)))

    def closing(self, last: TextDelta, usage: Mapping[str, Any]) -> Iterator[Event]:
        yield from map(_told, self._blocks.take(self._reading.end(last.finish_reason)))
        yield from map(_told, self._blocks.end())
        reason, sequence = self._end(last)
        ended = {"stop_reason": reason, "stop_sequence": sequence}
        yield {"type": "message_delta", "delta": ended, "usage": _usage(usage)}
        yield {"type": "message_stop"}

    def failing(self, error: Exception) -> Iterator[Event]:
        yield anthropic_body(*describe(error))

    def whole(self, gathered: Gathered, usage: Mapping[str, Any]) -> dict[str, Any]:
        assert gathered.last is not None
        taken = self._reading.take(gathered.text, gathered.ids, len(gathered.ids))
        for gained in (taken, self._reading.end(gathered.last.finish_reason)):
            deque(self._blocks.take(gained), 0)
        deque(self._blocks.end(), 0)
        content = [_block(block, block.text) for block in self._blocks.all]
        return self._message(content, *self._end(gathered.last), _usage(usage))

    def _end(self, last: TextDelta) -> tuple[str, str | None]:
        if last.finish_reason == "stop" and isinstance(last.stop_reason, str):
            return "stop_sequence", last.stop_reason
        reason = self._reading.finish_reason(last.finish_reason) or ""
        return {"length": "max_tokens", "tool_calls": "tool_use", "abort": "pause_turn"}.get(reason, "end_turn"), None

    def _message(
        self, content: list[dict[str, Any]], reason: str | None, sequence: str | None, usage: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {
            "id": self._call.id,
            "type": "message",
            "role": "assistant",
            "model": self._call.model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": usage,
        }


def add_routes(app: FastAPI, door: Door) -> None:
    @app.post("/v1/messages")
    async def messages(request: Request) -> Response:
        body = await door.reading(read_json(request, MessagesBody, door.intake))
        model = door.model_named(body.model)
        kept = ("stream", "temperature", "top_p", "top_k", "max_tokens")
        chat = _chat(door.service, body, {"stop": body.stop_sequences, **{name: getattr(body, name) for name in kept}})
        check_supported(chat)
        try:
            params = chat_params(chat, door.service.card.defaults, door.section.max_logprobs, door.service.tokenizer)
            prompt = await chat_prompt(door, chat)
            outlined = outline(door.service, chat, prompt)
            params = outlined.guided(params)
            check_limits(door.service.card, prompt, params)
            call = door.call(chat, "msg_", model, [prompt], params)
            return await tell(door, request, call, MessageStory(call, outlined))
        except RequestError as error:
            raise renamed(error, {**chat_names(chat), **_NAMES}) from None

    @app.post("/v1/messages/count_tokens")
    async def count_tokens(request: Request) -> Response:
        body = await door.reading(read_json(request, CountBody, door.intake))
        door.model_named(body.model)
        return response_to(200, {"input_tokens": len(await chat_prompt(door, _chat(door.service, body, {})))})


def _chat(service: Service, body: CountBody, fields: Mapping[str, Any]) -> ChatBody:
    extra = body.model_extra or {}
    for name in _FOREIGN:
        if extra.get(name):
            raise RequestError(f"{name} is not supported by this server", param=name, code="unsupported_parameter")
    thinks = body.thinking.get("type") if body.thinking is not None else None
    if thinks == "enabled" and service.reasoning_parser is None:
        raise RequestError(
            "this server cannot tell thinking from an answer: it would have to be started with --reasoning-parser NAME",
            param="thinking",
            code="unsupported_parameter",
        )
    messages = [each for number, turn in enumerate(body.messages) for each in _turn(turn, f"messages[{number}]")]
    if body.system:
        messages.insert(0, {"role": "system", "content": _text(body.system, "system")})
    goes_on = messages[-1]["role"] == "assistant"
    given = {
        **fields,
        "messages": messages,
        "tools": [_tool(number, tool) for number, tool in enumerate(body.tools or ())] or None,
        "tool_choice": _choice(body.tool_choice),
        "parallel_tool_calls": False if (body.tool_choice or {}).get("disable_parallel_tool_use") else None,
        "include_reasoning": False if thinks == "disabled" else None,
        "continue_final_message": goes_on or None,
        "add_generation_prompt": not goes_on,
    }
    return chat_of(given, extra, _NAMES)


def _turn(turn: Turn, where: str) -> Iterator[dict[str, Any]]:
    """A turn's results of tools are messages of their own in a chat, and stand before the rest of it."""
    if isinstance(turn.content, str):
        yield {"role": turn.role, "content": turn.content}
        return
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    results = 0
    for number, block in enumerate(turn.content):
        place = f"{where}.content[{number}]"
        match block.get("type"):
            case "text":
                texts.append(_text([block], f"{where}.content", number))
            case "tool_use" if turn.role == "assistant":
                function = {"name": block.get("name"), "arguments": json.dumps(block.get("input"), ensure_ascii=False)}
                calls.append({"id": block.get("id"), "type": "function", "function": function})
            case "tool_result" if turn.role == "user":
                results += 1
                content = _text(block.get("content") or "", f"{place}.content")
                yield {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": content}
            case "thinking" | "redacted_thinking" if turn.role == "assistant":
                continue  # an answer's own thoughts, which clients send back with it
            case kind:
                raise RequestError(f"{place} is of type {str(kind)[:40]!r}: {REJECTED}", param=place)
    if calls:
        yield {"role": turn.role, "content": "\n".join(texts) or None, "tool_calls": calls}
    elif texts or not results:
        yield {"role": turn.role, "content": "\n".join(texts)}


def _text(content: Any, where: str, first: int = 0) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"{where}: must be a string or a list of text blocks", param=where)
    texts = []
    for number, block in enumerate(content, first):
        kind = block.get("type") if isinstance(block, dict) else None
        if kind != "text":
            raise RequestError(f"{where}[{number}] is of type {str(kind)[:40]!r}: {REJECTED}", param=f"{where}[{number}]")
        if not isinstance(block.get("text"), str):
            raise RequestError(f"{where}[{number}].text: must be a string", param=f"{where}[{number}].text")
        texts.append(block["text"])
    return "\n".join(texts)


def _tool(number: int, tool: Mapping[str, Any]) -> dict[str, Any]:
    where = f"tools[{number}]"
    if tool.get("type", "custom") != "custom":
        raise RequestError(f"{where} is of type {str(tool['type'])[:40]!r}: only tools of one's own can be used", param=where)
    function = {"name": tool.get("name"), "description": tool.get("description"), "parameters": tool.get("input_schema")}
    return {"type": "function", "function": {name: value for name, value in function.items() if value is not None}}


def _choice(given: Mapping[str, Any] | None) -> Any:
    if given is None:
        return None
    if given.get("type") == "tool":
        return {"type": "function", "function": {"name": given.get("name")}}
    if given.get("type") not in _CHOICES:
        raise RequestError("tool_choice.type is auto, any, tool or none", param="tool_choice")
    return _CHOICES[given["type"]]


def _told(step: tuple[Action, Block, str]) -> Event:
    action, block, text = step
    if action == "open":
        return {"type": "content_block_start", "index": block.index, "content_block": _block(block, "")}
    if action == "close":
        return {"type": "content_block_stop", "index": block.index}
    kind, field = _DELTAS[block.kind]
    return {"type": "content_block_delta", "index": block.index, "delta": {"type": kind, field: text}}


def _block(block: Block, text: str) -> dict[str, Any]:
    match block.kind:
        case "text":
            return {"type": "text", "text": text}
        case "reasoning":
            return {"type": "thinking", "thinking": text, "signature": ""}
        case "call":
            return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": _arguments(text)}


def _arguments(text: str) -> Any:
    """As an object; what the length cut off is none."""
    try:
        return json.loads(text or "{}")
    except ValueError:
        return {}


def _usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    """Anthropic counts what was found in the cache apart from the rest of the prompt."""
    cached = usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
    return {
        "input_tokens": usage["prompt_tokens"] - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage["completion_tokens"],
    }
