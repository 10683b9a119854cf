"""An answer as blocks that follow each other: reasoning, text, calls. Some APIs open, fill and close each of them by events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from frontends.openai_http.outline import CallDelta, Gained

Kind = Literal["reasoning", "text", "call"]
Action = Literal["open", "grow", "close"]


@dataclass
class Block:
    """``text`` is what it says so far; of a call, its arguments."""

    index: int
    kind: Kind
    call_id: str = ""
    name: str = ""
    parts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.parts)


class Blocks:
    """At most the last one is open."""

    def __init__(self) -> None:
        self.all: list[Block] = []
        self._open: Block | None = None

    def take(self, gained: Gained) -> Iterator[tuple[Action, Block, str]]:
        """What happens to which block; the text is what it grows by."""
        if gained.reasoning:
            yield from self._say("reasoning", gained.reasoning)
        if gained.text:
            yield from self._say("text", gained.text)
        for call in gained.calls:
            yield from self._call(call)

    def end(self) -> Iterator[tuple[Action, Block, str]]:
        """An answer that says nothing has an empty text."""
        if not self.all:
            yield from self._begin(Block(0, "text"))
        yield from self._close()

    def _say(self, kind: Kind, text: str) -> Iterator[tuple[Action, Block, str]]:
        if self._open is None or self._open.kind != kind:
            yield from self._begin(Block(len(self.all), kind))
        yield from self._grow(text)

    def _call(self, call: CallDelta) -> Iterator[tuple[Action, Block, str]]:
        if call.id is not None:
            yield from self._begin(Block(len(self.all), "call", call.id, call.name or ""))
        if call.arguments:
            yield from self._grow(call.arguments)

    def _begin(self, block: Block) -> Iterator[tuple[Action, Block, str]]:
        yield from self._close()
        self.all.append(block)
        self._open = block
        yield "open", block, ""

    def _grow(self, text: str) -> Iterator[tuple[Action, Block, str]]:
        assert self._open is not None
        self._open.parts.append(text)
        yield "grow", self._open, text

    def _close(self) -> Iterator[tuple[Action, Block, str]]:
        if (block := self._open) is not None:
            self._open = None
            yield "close", block, ""
