"""Calls as JSON between tags, amid text: ``<tool_call>{"name": "f", "arguments": {...}}</tool_call>``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from core.interfaces.parsers import Part, Piece, Said, Tool, ToolParser, ToolStream
from tool_parsers.call_reader import CallReader
from tool_parsers.holding import beginning, certain

BEGIN, END = "<tool_call>", "</tool_call>"
MOST_CALLS = 16  # that a form allows: a small model may not come to an end by itself


class Tagged(ToolParser):
    marks = (BEGIN, END)

    def stream(self, tools: Sequence[Tool]) -> ToolStream:
        return TaggedStream()

    def form(self, tools: Sequence[Tool], *, several: bool) -> Sequence[Part]:
        calls = {"any_of": [[{"text": BEGIN}, *_rest(tool)] for tool in tools]}
        return [{"repeat": [calls, {"regex": r"\n?"}], "least": 1, "most": MOST_CALLS}] if several else [calls]

    def strict_form(self, tools: Sequence[Tool], *, several: bool) -> Sequence[Part]:
        calls = {"any_of": [_rest(tool) for tool in tools]}
        most = MOST_CALLS if several else 1
        return [{"repeat": [{"until": BEGIN}, calls], "least": 0, "most": most}, {"anything": True}]


def _rest(tool: Tool) -> list[Part]:
    """A call after its first tag."""
    return [
        {"text": f'\n{{"name": {json.dumps(tool.name)}, "arguments": '},
        {"json_schema": tool.parameters},
        {"text": f"}}\n{END}"},
    ]


class TaggedStream(ToolStream):
    def __init__(self) -> None:
        self._pending = ""
        self._call: CallReader | None = None  # being read
        self._opening = ""  # its first tag, and white space before
        self._closing = False  # a call was read, its last tag was not
        self._after_call = False

    def push(self, text: str, token_ids: Sequence[int] = ()) -> list[Piece]:
        self._pending += text
        pieces: list[Piece] = []
        before = None
        while before != (state := (len(self._pending), self._call, self._closing)):
            before = state
            pieces += self._closed() if self._closing else self._inside() if self._call is not None else self._outside()
        return pieces

    def final(self, *, cut: bool = False) -> list[Piece]:
        if self._call is not None:
            return [] if cut or self._call.told else list(self._said(self._opening + self._call.raw))
        if self._closing or (cut and beginning(self._pending, BEGIN)):
            return []
        return list(self._said(self._pending))

    def _outside(self) -> Iterator[Piece]:
        at = self._pending.find(BEGIN)
        if at >= 0:
            words = self._pending[:at].rstrip()
            yield from self._said(words)
            self._opening = self._pending[len(words) : at + len(BEGIN)]
            self._pending, self._call = self._pending[at + len(BEGIN) :], CallReader()
            return
        if self._after_call:
            self._pending = self._pending.lstrip()
        ready = certain(self._pending, BEGIN)
        yield from self._said(self._pending[:ready])
        self._pending = self._pending[ready:]

    def _inside(self) -> Iterator[Piece]:
        call = self._call
        assert call is not None
        pieces, self._pending = call.push(self._pending)
        yield from pieces
        if call.broken and not call.told:
            yield from self._said(self._opening + call.raw)
            self._call = None
        elif call.done or call.broken:
            self._call, self._closing, self._after_call = None, True, True

    def _closed(self) -> Iterator[Piece]:
        """Up to the last tag, or to the next call where it was forgotten."""
        end, begin = self._pending.find(END), self._pending.find(BEGIN)
        if end >= 0 and (begin < 0 or end < begin):
            self._pending, self._closing = self._pending[end + len(END) :], False
        elif begin >= 0:
            self._pending, self._closing = self._pending[begin:], False
        else:
            held = max(beginning(self._pending, END), beginning(self._pending, BEGIN))
            self._pending = self._pending[len(self._pending) - held :]
        return iter(())

    def _said(self, text: str) -> Iterator[Piece]:
        if self._after_call:
            text = text.lstrip()
        if text:
            self._after_call = False
            yield Said(text)
