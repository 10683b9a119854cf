"""What a request of ``/v1/responses`` brings, as a chat has it: items, the format of the text, tools."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from core.errors import RequestError
from frontends.openai_http.translation import REJECTED

_TEXT_PARTS = frozenset({"input_text", "output_text", "text"})
_ROLES = frozenset({"user", "assistant", "system", "developer"})


def messages_of(given: Any) -> Iterator[dict[str, Any]]:
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
            case "item_reference":
                raise RequestError(f"{where}: this server keeps no items: send the item itself", param=where)
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


def format_of(given: dict[str, Any] | None) -> dict[str, Any] | None:
    """Here a schema's name and the schema stand beside the type; a chat has them one level below."""
    kind = "text" if given is None else given.get("type")
    if kind not in ("text", "json_object", "json_schema"):
        raise RequestError(f"text.format is text, json_object or json_schema, not {str(kind)[:40]!r}", param="text")
    if kind != "json_schema" or given is None:
        return given
    return {"type": "json_schema", "json_schema": {name: value for name, value in given.items() if name != "type"}}


def tool_of(number: int, tool: dict[str, Any]) -> dict[str, Any]:
    """The same one level deeper."""
    if tool.get("type") != "function":
        kind = str(tool.get("type"))[:40]
        raise RequestError(f"tools[{number}] is of type {kind!r}: only functions can be called here", param=f"tools[{number}]")
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def choice_of(given: Any) -> Any:
    if not isinstance(given, dict):
        return given
    match given.get("type"):
        case "function":
            return _named(given)
        case "allowed_tools":
            tools = given.get("tools")
            named = [_named(tool) for tool in tools] if isinstance(tools, list) else tools
            return {"type": "allowed_tools", "allowed_tools": {"mode": given.get("mode"), "tools": named}}
    return given


def _named(tool: Any) -> Any:
    if not isinstance(tool, dict):
        return tool
    return {"type": tool.get("type"), "function": {"name": tool.get("name")}}
