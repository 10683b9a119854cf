"""Grammars of kind "parts" in Lark's notation, as llguidance reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_KINDS = frozenset({"text", "until", "anything", "json_schema", "regex", "any_of", "repeat"})


def lark_of(text: str, json_options: Mapping[str, Any]) -> str:
    """:raises ValueError: for what is no list of parts."""
    rules = _Rules(json_options)
    start = rules.sequence(json.loads(text))
    return "\n".join([f"start: {start}", *rules.lines])


class _Rules:
    """One rule a part, named by its number."""

    def __init__(self, json_options: Mapping[str, Any]) -> None:
        self.lines: list[str] = []
        self._json_options = json_options

    def sequence(self, parts: Any) -> str:
        if not isinstance(parts, Sequence) or isinstance(parts, str):
            raise ValueError("parts are a list")
        return " ".join(self._part(part) for part in parts) or '""'

    def _part(self, part: Any) -> str:
        if not isinstance(part, Mapping) or len(kinds := part.keys() & _KINDS) != 1:
            raise ValueError(f"a part is an object of one of the kinds {', '.join(sorted(_KINDS))}")
        kind = kinds.pop()
        value = part[kind]
        match kind:
            case "text":
                return _quoted(value)
            case "until":
                return self._rule("/(?s:.*)/", f"[suffix={_quoted(value)}]")
            case "anything":
                return self._rule("/(?s:.*)/")
            case "regex":
                return self._rule(f"/{_text(value).replace('/', chr(92) + '/')}/")
            case "json_schema":
                return self._rule(f"%json {json.dumps(self._schema(value))}")
            case "any_of":
                choices = [self.sequence(each) for each in value]
                return self._rule(" | ".join(choices)) if choices else '""'
        least, most = part.get("least", 0), part.get("most")
        return self._rule(f"({self.sequence(value)}){{{int(least)},{'' if most is None else int(most)}}}")

    def _schema(self, schema: Any) -> dict[str, Any]:
        known = dict(schema) if isinstance(schema, Mapping) else {"allOf": [schema]}
        return {**known, "x-guidance": dict(self._json_options)}

    def _rule(self, body: str, options: str = "") -> str:
        name = f"part_{len(self.lines)}"
        self.lines.append(f"{name}{options}: {body}")
        return name


def _quoted(value: Any) -> str:
    return json.dumps(_text(value), ensure_ascii=False)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("this kind of part has a text")
    return value
