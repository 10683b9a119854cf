"""Calls as bare JSON, which are then all of the output: ``{"name": "f", "parameters": {...}}; {...}``."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from core.interfaces.parsers import Part, Piece, Said, Tool, ToolParser, ToolStream
from tool_parsers.call_reader import ARGUMENTS, CallReader

TAG = "<|python_tag|>"
MOST_CALLS = 16
_BETWEEN = " \t\r\n;,"
_KEYS = ARGUMENTS | {"name"}
_OPENING = re.compile(r'\{\s*(?:"(?P<key>[^"]*)(?:(?P<closed>")\s*(?::\s*"(?P<name>[^"]*))?)?)?')


class Bare(ToolParser):
    def stream(self, tools: Sequence[Tool]) -> ToolStream:
        return BareStream(frozenset(tool.name for tool in tools))

    def form(self, tools: Sequence[Tool], *, several: bool) -> Sequence[Part]:
        calls = {
            "any_of": [
                [
                    {"text": f'{{"name": {json.dumps(tool.name)}, "parameters": '},
                    {"json_schema": tool.parameters},
                    {"text": "}"},
                ]
                for tool in tools
            ]
        }
        more = {"repeat": [{"text": "; "}, calls], "least": 0, "most": MOST_CALLS - 1}
        return [calls, more] if several else [calls]

    def strict_form(self, tools: Sequence[Tool], *, several: bool) -> Sequence[Part]:
        return [{"any_of": [self.form(tools, several=several), [{"regex": r"(?s:[^{<\s].*)?"}]]}]


class BareStream(ToolStream):
    """An object that names none of the tools is an answer in JSON, and no call."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._pending = ""
        self._call: CallReader | None = None
        self._before = ""  # what came before it
        self._words = False  # from here on, everything is text
        self._any_call = False

    def push(self, text: str, token_ids: Sequence[int] = ()) -> list[Piece]:
        self._pending += text
        pieces: list[Piece] = []
        while self._pending and not self._words:
            if self._call is None and not self._begins():
                return pieces
            if self._call is not None:
                pieces += self._inside(self._call)
        return pieces + self._rest()

    def final(self, *, cut: bool = False) -> list[Piece]:
        if self._call is not None:
            begun = self._call.told or (cut and self._may_call(self._call.raw))
            return [] if begun else [Said(self._before + self._call.raw)]
        pending = self._pending.strip(_BETWEEN)
        if cut and not self._any_call and pending and (TAG.startswith(pending) or pending.startswith(TAG)):
            return []
        self._words = not self._any_call or bool(pending)
        return self._rest()

    def _may_call(self, raw: str) -> bool:
        """Whether the beginning of an object is that of a call rather than of an answer in JSON."""
        found = _OPENING.match(raw)
        assert found is not None
        key, closed, name = found["key"] or "", found["closed"], found["name"]
        if name is not None and key == "name":
            return any(each.startswith(name) for each in self._names)
        return key in _KEYS if closed else any(each.startswith(key) for each in _KEYS)

    def _begins(self) -> bool:
        """Whether it is known now what comes: a call, or text."""
        found = self._pending.lstrip(_BETWEEN if self._any_call else None)
        if not self._any_call and found.startswith(TAG):
            found = found[len(TAG) :].lstrip()
            if not found:
                return False
        elif not found or (not self._any_call and TAG.startswith(found)):
            return False
        if found[0] == "{":
            self._call = CallReader(self._names)
            self._before, self._pending = self._pending[: len(self._pending) - len(found)], found
        else:
            self._words = True
        return True

    def _inside(self, call: CallReader) -> list[Piece]:
        pieces, self._pending = call.push(self._pending)
        if call.broken and not call.told:
            self._pending, self._words = self._before + call.raw + self._pending, True
        elif call.told:
            self._any_call = True
        if call.done or call.broken:
            self._call = None
        return pieces

    def _rest(self) -> list[Piece]:
        if not self._words or not self._pending:
            return []
        said, self._pending = Said(self._pending), ""
        return [said]
