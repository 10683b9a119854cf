"""Calls as a Python list, which is then all of the output: ``[f(city="Paris"), g()]``."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence

from core.interfaces.parsers import CallBegins, CallGrows, Piece, Said, Tool, ToolParser, ToolStream

MOST_CHARACTERS = 100_000  # of one call
_BETWEEN = " \t\r\n,"


class Pythonic(ToolParser):
    """It has no form: a JSON schema says nothing of Python's values."""

    def stream(self, tools: Sequence[Tool]) -> ToolStream:
        return PythonicStream(frozenset(tool.name for tool in tools))


class PythonicStream(ToolStream):
    """A call is told when it is complete: before that its arguments cannot be written as JSON."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._pending = ""
        self._opening = ""  # what came before the first call, until that is told
        self._looked_at = 0
        self._state = "before"  # then "list" and "after" it, or "words"
        self._depth = 0
        self._quote = ""
        self._escaped = False

    def push(self, text: str, token_ids: Sequence[int] = ()) -> list[Piece]:
        self._pending += text
        if self._state == "before" and (found := self._pending.lstrip()):
            self._state = "list" if found[0] == "[" else "words"
            if self._state == "list" and len(found) > 1 and not self._may_begin(found[1:]):
                self._state = "words"
            elif self._state == "list" and self._undecided(found[1:]):
                self._state = "before"
            elif self._state == "list":
                self._opening, self._pending = self._pending[: len(self._pending) - len(found) + 1], found[1:]
        pieces: list[Piece] = []
        while self._state == "list" and (call := self._next_call()):
            pieces += call
        return pieces + self._rest()

    def final(self, *, cut: bool = False) -> list[Piece]:
        if cut and (self._state == "list" or (self._state == "before" and self._pending.strip())):
            return []
        if self._state == "list":
            self._pending = self._opening + self._pending
        if self._state != "after":
            self._state = "words"
        return self._rest()

    def _undecided(self, after: str) -> bool:
        return not any(after.lstrip().startswith(f"{name}(") for name in self._names)

    def _may_begin(self, after: str) -> bool:
        after = after.lstrip()
        return any(f"{name}(".startswith(after) or after.startswith(f"{name}(") for name in self._names)

    def _next_call(self) -> list[Piece]:
        """The next complete call; nothing while it goes on, or when what comes is none."""
        if not self._looked_at:
            self._pending = self._pending.lstrip(_BETWEEN)
            if self._pending.startswith("]"):
                self._pending, self._state = self._pending[1:], "after"
                return []
        for at in range(self._looked_at, len(self._pending)):
            if self._closes(self._pending[at]):
                source, self._pending, self._looked_at = self._pending[: at + 1], self._pending[at + 1 :], 0
                call = _call(source) if len(source) <= MOST_CHARACTERS else None
                if call is not None and call[0] in self._names:
                    self._opening = ""
                    return [CallBegins(call[0]), CallGrows(call[1])]
                self._pending, self._state = self._opening + source + self._pending, "words"
                return []
        self._looked_at = len(self._pending)
        return []

    def _closes(self, char: str) -> bool:
        if self._quote:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == self._quote:
                self._quote = ""
        elif char in "\"'":
            self._quote = char
        elif char in "([{":
            self._depth += 1
        elif char in ")]}":
            self._depth -= 1
            return self._depth <= 0
        return False

    def _rest(self) -> list[Piece]:
        if self._state == "after":
            self._pending = self._pending.lstrip()
            self._state = "words" if self._pending else "after"
        if self._state != "words" or not self._pending:
            return []
        said, self._pending = Said(self._pending), ""
        return [said]


def _call(source: str) -> tuple[str, str] | None:
    """The function's name and its arguments as JSON; None for what is no call with named arguments of plain values."""
    try:
        call = ast.parse(source, mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(each.arg is None for each in call.keywords):
            return None
        arguments = {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}
        return ast.unparse(call.func), json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None
