"""Parsers of what a model says: what of its text is reasoning, what is a call of a tool, and what is for the reader.

Both kinds run in the front end's process, on text as it comes. A parser is made once; it makes a *stream* for each output.
A stream gets the output's text piece by piece, cut anywhere, and tells what it means as soon as that is certain: text that
could still turn out to be the beginning of a mark is held until it is known. However the text is cut, the parts told make
up the same whole. Nothing a model writes makes a stream raise: what is no call after all is text.

A parser may also say in which form its model writes (``Part``), so that a grammar backend can keep an output to it: a call
that has to be made is then made, unless its tokens run out, with arguments that fit the function's JSON schema.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Part = Mapping[str, Any]
"""One part of a ``Grammar`` of kind "parts": see ``core.interfaces.request.Grammar``."""


@dataclass(frozen=True)
class Tool:
    """A function that the model may call. ``parameters`` is the JSON schema of its arguments, which are one object.

    ``strict``: its arguments have to fit the schema also where the model was free to call it or not.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object"})
    strict: bool = False


@dataclass(frozen=True)
class Said:
    """Text for the reader."""

    text: str


@dataclass(frozen=True)
class CallBegins:
    """A call of the function ``name``. The calls of an output are numbered by the order in which they begin."""

    name: str


@dataclass(frozen=True)
class CallGrows:
    """More of the arguments of the call that began last: a piece of a JSON text, cut anywhere."""

    arguments: str


Piece = Said | CallBegins | CallGrows


class ToolStream(ABC):
    """One output on its way through a tool parser."""

    @abstractmethod
    def push(self, text: str, token_ids: Sequence[int] = ()) -> list[Piece]:
        """``text`` came next; ``token_ids`` are the tokens it came with, of which the text may be a part.

        A call is told by its name first, then its arguments as they come. White space around calls belongs to nobody.
        """

    @abstractmethod
    def final(self, *, cut: bool = False) -> list[Piece]:
        """The output has ended, perhaps in the middle of something: what was held. Called once, last.

        ``cut``: its tokens ran out, or it was aborted. What may have been the beginning of a mark or of a call is then none of
        the reader's text, and is left out; of a model that ended there by itself, it is.
        """


class ToolParser(ABC):
    marks: tuple[str, ...] = ()
    """What it looks for. Where one of them is a control token of the model, these are not left out of the text."""

    @abstractmethod
    def stream(self, tools: Sequence[Tool]) -> ToolStream:
        """For one output of a model that was offered ``tools``, one at least."""

    def form(self, tools: Sequence[Tool], *, several: bool) -> Sequence[Part] | None:
        """An output that is calls of ``tools`` and nothing else: one, or ``several``. None when that cannot be said."""
        return None

    def strict_form(self, tools: Sequence[Tool], *, several: bool) -> Sequence[Part] | None:
        """Any text, with calls in it or none, whose arguments fit their schemas. None when that cannot be said."""
        return None


class ReasoningStream(ABC):
    """One output on its way through a reasoning parser."""

    @abstractmethod
    def push(self, text: str, token_ids: Sequence[int] = ()) -> tuple[str, str]:
        """``text`` came next: what of it, and of what was held, is reasoning, and what is the answer that follows it."""

    @abstractmethod
    def final(self, *, cut: bool = False) -> tuple[str, str]:
        """The output has ended: what was held, in the same way. Called once, last. ``cut``: as for ``ToolStream.final``."""


class ReasoningParser(ABC):
    marks: tuple[str, ...] = ()
    """What it looks for. Where one of them is a control token of the model, these are not left out of the text."""

    @abstractmethod
    def stream(self, prompt: str) -> ReasoningStream:
        """For one output. ``prompt`` is the end of the text it continues: a chat template may open the reasoning, or end it."""

    def form(self, prompt: str) -> Sequence[Part] | None:
        """What comes before the answer: nothing where the prompt has ended the reasoning. None when that cannot be said."""
        return None
