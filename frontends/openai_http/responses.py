"""``POST /v1/responses``: OpenAI's Responses API in its text form. A request becomes the chat it stands for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from uuid import uuid4

from fastapi import FastAPI
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from core.errors import RequestError
from core.interfaces.frontend import TextDelta, TokenInfo
from frontends.openai_http.body import read_json
from frontends.openai_http.chat import chat_prompt
from frontends.openai_http.door import Call, Door
from frontends.openai_http.errors import describe
from frontends.openai_http.generation import LOWEST_LOGPROB, Gathered
from frontends.openai_http.params import chat_names, chat_params, check_limits, check_supported, renamed
from frontends.openai_http.schema import ChatBody, Wire
from frontends.openai_http.single import Event, tell
from frontends.openai_http.translation import REJECTED, chat_of

_TEXT_PARTS = frozenset({"input_text", "output_text", "text"})
_ROLES = frozenset({"user", "assistant", "system", "developer"})
_NAMES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "response_format": "text",
}
_LOGPROBS = "message.output_text.logprobs"  # what ``include`` calls them


class TextOptions(Wire):
    format: dict[str, Any] | None = None


class ResponsesBody(Wire):
    """OpenAI's fields. Of what this server adds, everything that a chat takes and that is no field here."""

    model: str | None = None
    input: Any
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    text: TextOptions | None = None
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
    """One message of one text part, which is all that a text model answers."""

    def __init__(self, call: Call, body: ResponsesBody, chat: ChatBody) -> None:
        self._call = call
        self._body = body
        self._chat = chat
        self._item = f"msg_{uuid4().hex}"
        self._logprobs = _LOGPROBS in (body.include or ())
        self._number = -1

    def opening(self) -> Iterator[Event]:
        begun = self._response("in_progress", [], None)
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        yield self._event("response.output_item.added", output_index=0, item=self._message("in_progress", []))
        yield self._event("response.content_part.added", **self._place(), part=_part("", []))

    def piece(self, delta: TextDelta) -> Iterator[Event]:
        logprobs = self._shown(delta.logprobs or ())
        yield self._event("response.output_text.delta", **self._place(), delta=delta.text, logprobs=logprobs)

    def closing(self, gathered: Gathered, usage: Mapping[str, Any]) -> Iterator[Event]:
        text, logprobs = gathered.text, self._shown(gathered.infos)
        part, status = _part(text, logprobs), _status(gathered)
        item = self._message(_item_status(status), [part])
        yield self._event("response.output_text.done", **self._place(), text=text, logprobs=logprobs)
        yield self._event("response.content_part.done", **self._place(), part=part)
        yield self._event("response.output_item.done", output_index=0, item=item)
        kind = "response.completed" if status == "completed" else "response.incomplete"
        yield self._event(kind, response=self._response(status, [item], usage))

    def failing(self, gathered: Gathered, error: Exception) -> Iterator[Event]:
        status, body = describe(error)
        told = body["error"]
        code = "rate_limit_exceeded" if status == 429 else "server_error"
        item = self._message("incomplete", [_part(gathered.text, self._shown(gathered.infos))])
        failed = self._response("failed", [item], None) | {"error": {"code": code, "message": told["message"]}}
        yield self._event("response.failed", response=failed)

    def whole(self, gathered: Gathered, usage: Mapping[str, Any]) -> dict[str, Any]:
        status = _status(gathered)
        item = self._message(_item_status(status), [_part(gathered.text, self._shown(gathered.infos))])
        return self._response(status, [item], usage)

    def _event(self, kind: str, **fields: Any) -> Event:
        self._number += 1
        return {"type": kind, "sequence_number": self._number, **fields}

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item, "output_index": 0, "content_index": 0}

    def _message(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._item, "type": "message", "status": status, "role": "assistant", "content": content}

    def _shown(self, infos: Iterable[TokenInfo]) -> list[dict[str, Any]]:
        return [_logprob(info) for info in infos] if self._logprobs else []

    def _response(self, status: str, output: list[dict[str, Any]], usage: Mapping[str, Any] | None) -> dict[str, Any]:
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
            "output": output,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": params.temperature,
            "text": {"format": (body.text and body.text.format) or {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": params.top_p,
            "truncation": "disabled",
            "usage": None if usage is None else _usage(usage),
            "user": body.user,
            "metadata": body.metadata or {},
        }


def add_routes(app: FastAPI, door: Door) -> None:
    @app.post("/v1/responses")
    async def responses(request: Request) -> Response:
        body = await door.reading(read_json(request, ResponsesBody, door.section.max_request_bytes))
        chat = _chat(body)
        check_supported(chat)
        model = door.model_named(body.model)
        names = {**chat_names(chat), "prompt": "input"} | _NAMES
        try:
            params = chat_params(chat, door.service.card.defaults, door.section.max_logprobs)
            prompt = await chat_prompt(door, chat)
            check_limits(door.service.card, prompt, params)
            call = Call.of(chat, "resp", model, [prompt], params)
            return await tell(door, request, call, ResponseStory(call, body, chat))
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
    messages = list(_messages(body.input))
    if body.instructions is not None:
        messages.insert(0, {"role": "system", "content": body.instructions})
    fields = {
        "messages": messages,
        "max_completion_tokens": body.max_output_tokens,
        "response_format": _format(body.text.format if body.text else None),
        "tools": [_tool(number, tool) for number, tool in enumerate(body.tools or ())] or None,
        "tool_choice": _choice(body.tool_choice),
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


def _messages(given: Any) -> Iterator[dict[str, Any]]:
    if isinstance(given, str):
        yield {"role": "user", "content": given}
        return
    if not isinstance(given, list) or not given:
        raise RequestError("input: must be a string or a list of items that is not empty", param="input")
    for number, item in enumerate(given):
        where = f"input[{number}]"
        if not isinstance(item, dict):
            raise RequestError(f"{where}: must be an object", param=where)
        match item.get("type", "message"):
            case "message":
                if item.get("role") not in _ROLES:
                    raise RequestError(f"{where}.role: must be user, assistant, system or developer", param=f"{where}.role")
                yield {"role": item["role"], "content": _content(item.get("content"), f"{where}.content")}
            case "function_call":
                function = {"name": item.get("name"), "arguments": item.get("arguments")}
                call = {"id": item.get("call_id"), "type": "function", "function": function}
                yield {"role": "assistant", "content": None, "tool_calls": [call]}
            case "function_call_output":
                output = _content(item.get("output"), f"{where}.output")
                yield {"role": "tool", "tool_call_id": item.get("call_id"), "content": output}
            case "reasoning":
                continue  # an answer's own thoughts, which clients send back with it
            case kind:
                raise RequestError(f"{where} is of type {str(kind)[:40]!r}: {REJECTED}", param=where)


def _content(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"{where}: must be a string or a list of parts", param=where)
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in _TEXT_PARTS:
            raise RequestError(f"{where}[{number}] is of type {str(kind)[:40]!r}: {REJECTED}", param=f"{where}[{number}]")
        if not isinstance(part.get("text"), str):
            raise RequestError(f"{where}[{number}].text: must be a string", param=f"{where}[{number}].text")
        texts.append(part["text"])
    return "\n".join(texts)


def _format(given: dict[str, Any] | None) -> dict[str, Any] | None:
    """Here a schema's name and the schema stand beside the type; a chat has them one level below."""
    kind = "text" if given is None else given.get("type")
    if kind not in ("text", "json_object", "json_schema"):
        raise RequestError(f"text.format is text, json_object or json_schema, not {str(kind)[:40]!r}", param="text")
    if kind != "json_schema" or given is None:
        return given
    return {"type": "json_schema", "json_schema": {name: value for name, value in given.items() if name != "type"}}


def _tool(number: int, tool: dict[str, Any]) -> dict[str, Any]:
    """The same one level deeper."""
    if tool.get("type") != "function":
        kind = str(tool.get("type"))[:40]
        raise RequestError(f"tools[{number}] is of type {kind!r}: only functions can be called here", param=f"tools[{number}]")
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _choice(given: Any) -> Any:
    if isinstance(given, dict) and given.get("type") == "function":
        return {"type": "function", "function": {"name": given.get("name")}}
    return given


def _status(gathered: Gathered) -> str:
    assert gathered.last is not None
    return {"length": "incomplete", "abort": "cancelled"}.get(gathered.last.finish_reason or "", "completed")


def _item_status(status: str) -> str:
    return "completed" if status == "completed" else "incomplete"


def _part(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _logprob(info: TokenInfo) -> dict[str, Any]:
    top = [{"token": each.text, "logprob": max(each.logprob, LOWEST_LOGPROB), "bytes": list(each.bytes)} for each in info.top]
    shown = {"token": info.text, "logprob": max(info.logprob, LOWEST_LOGPROB), "bytes": list(info.bytes)}
    return {**shown, "top_logprobs": top}


def _usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {
            "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
            "cache_write_tokens": 0,
        },
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }
