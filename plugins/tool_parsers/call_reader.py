"""One call as a JSON object, read as it comes: ``{"name": "f", "arguments": {...}}``."""

from __future__ import annotations

import json
from collections.abc import Callable, Container

from core.interfaces.parsers import CallBegins, CallGrows, Piece

ARGUMENTS = frozenset({"arguments", "parameters"})
_WHITE = " \t\r\n"


class CallReader:
    """``push`` until it is ``done``, or ``broken``: then what came is no call, and ``raw`` is what it was.

    Once the name is told nothing is taken back: a call that breaks later has the arguments that came so far.
    """

    def __init__(self, names: Container[str] | None = None) -> None:
        """``names``: of the functions there are; an object with another name is no call. None takes any name."""
        self._names = names
        self.raw = ""
        self.done = self.broken = self.told = False
        self._read: Callable[[str], int] = self._begin
        self._key = self._value = ""
        self._depth = 0
        self._in_string = self._escaped = False
        self._name: str | None = None
        self._fresh = ""  # arguments that are not told yet; they may come before the name
        self._any_arguments = False

    def push(self, text: str) -> tuple[list[Piece], str]:
        """What ``text`` tells, and what of it comes after the call."""
        taken = 0
        while taken < len(text) and not (self.done or self.broken):
            taken += self._read(text[taken])
        if not self.told:
            self.raw += text[:taken]
        return self._pieces(), text[taken:]

    def _pieces(self) -> list[Piece]:
        pieces: list[Piece] = []
        if not self.told:
            if self.broken or self._name is None:
                return pieces
            if self._names is not None and self._name not in self._names:
                self.done, self.broken = False, True
                return pieces
            self.told, self.raw = True, ""
            pieces.append(CallBegins(self._name))
        if self.done and not self._any_arguments:
            self._fresh = "{}"
        if self._fresh:
            pieces.append(CallGrows(self._fresh))
            self._fresh = ""
        return pieces

    # --- one character each; how many were taken, 0 or 1 ------------------------------------------------------------

    def _begin(self, char: str) -> int:
        if char == "{":
            self._read = self._key_or_end
        elif char not in _WHITE:
            self.broken = True
            return 0
        return 1

    def _key_or_end(self, char: str) -> int:
        if char == "}":
            return self._end()
        return self._next_key(char)

    def _next_key(self, char: str) -> int:
        if char == '"':
            self._value, self._read = char, self._in_key
        elif char not in _WHITE:
            self.broken = True
        return 1

    def _in_key(self, char: str) -> int:
        if self._string_ends(char):
            self._key = str(self._decoded() or "")
            self._read = self._colon
        return 1

    def _colon(self, char: str) -> int:
        if char == ":":
            self._read = self._value_begins
        elif char not in _WHITE:
            self.broken = True
        return 1

    def _value_begins(self, char: str) -> int:
        if char in _WHITE:
            return 1
        self._value = ""
        if char in "{[":
            self._depth = 0
            self._read = self._in_arguments if self._key in ARGUMENTS else self._in_nested
            return 0
        if char == '"':
            self._value, self._read = char, self._in_text
            return 1
        self._read = self._in_scalar
        return 0

    def _in_arguments(self, char: str) -> int:
        self._any_arguments = True
        self._fresh += char
        return self._in_nested(char)

    def _in_nested(self, char: str) -> int:
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self._in_string = False
        elif char == '"':
            self._in_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            if self._depth == 0:
                self._read = self._comma
        return 1

    def _in_text(self, char: str) -> int:
        """A string: the name, or arguments that were encoded twice."""
        if self._string_ends(char):
            decoded = self._decoded()
            if self._key == "name":
                self._name = decoded or None
                self.broken = self._name is None
            elif self._key in ARGUMENTS and decoded is not None:
                self._any_arguments = True
                self._fresh += decoded or "{}"
            self._read = self._comma
        return 1

    def _in_scalar(self, char: str) -> int:
        """A number, true, false, null: none of them is a name or an argument."""
        if char in ",}" or char in _WHITE:
            self.broken = self._key == "name"
            self._read = self._comma
            return 0
        return 1

    def _comma(self, char: str) -> int:
        if char == ",":
            self._read = self._next_key
        elif char == "}":
            return self._end()
        elif char not in _WHITE:
            self.broken = True
        return 1

    def _end(self) -> int:
        self.done = True
        self.broken = self._name is None
        return 1

    def _string_ends(self, char: str) -> bool:
        self._value += char
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            return True
        return False

    def _decoded(self) -> str | None:
        """The string that was read. A line end inside it is no mistake: models write them so."""
        try:
            decoded = json.loads(self._value, strict=False)
        except ValueError:
            return None
        return decoded if isinstance(decoded, str) else None
