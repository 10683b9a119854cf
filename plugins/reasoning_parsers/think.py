"""Reasoning between marks, before the answer."""

from __future__ import annotations

from collections.abc import Sequence

from core.interfaces.parsers import Part, ReasoningParser, ReasoningStream

START, END = "<think>", "</think>"
LINES = r"\n{0,3}"  # between reasoning and answer, where the answer has a form


class Think(ReasoningParser):
    marks = (START, END)

    def __init__(self, *, begins: bool, wrap: tuple[str, str] | None = None) -> None:
        """``begins``: an output begins with reasoning even if neither it nor its prompt says so.

        ``wrap``: what may stand around the answer and is no part of it.
        """
        self._begins = begins
        self._wrap = wrap

    def stream(self, prompt: str) -> ReasoningStream:
        return ThinkStream(_opened(prompt), self._begins, self._wrap)

    def form(self, prompt: str) -> Sequence[Part]:
        opened = _opened(prompt)
        reasoning = [{"until": END}, {"regex": LINES}]
        if opened is False:
            return []
        if opened or self._begins:
            return reasoning
        return [{"any_of": [[{"text": START}, *reasoning], []]}]


def _opened(prompt: str) -> bool | None:
    """Whether the prompt ends in reasoning, or after it; None where it says nothing of it."""
    end = prompt.rstrip()
    return True if end.endswith(START) else False if end.endswith(END) else None


class ThinkStream(ReasoningStream):
    def __init__(self, opened: bool | None, begins: bool, wrap: tuple[str, str] | None) -> None:
        self._begins = begins
        self._wrap = wrap
        self._pending = ""
        self._state = {None: "before", True: "thinking", False: "answer"}[opened]
        self._silent = True  # nothing of this part has been told yet: white space is left out
        if self._state == "answer":
            self._begin_answer()

    def push(self, text: str, token_ids: Sequence[int] = ()) -> tuple[str, str]:
        self._pending += text
        reasoning = answer = ""
        if self._state == "before":
            self._before()
        if self._state == "thinking":
            reasoning = self._thinking()
        if self._state == "unwrapping":
            self._unwrap()
        if self._state == "wrapped":
            answer = self._wrapped()
        if self._state == "answer":
            answer += self._answer()
        return reasoning, answer

    def final(self, *, cut: bool = False) -> tuple[str, str]:
        rest, self._pending = self._pending, ""
        if cut and (held := _beginning(rest, self._awaited)):
            rest = rest[: len(rest) - held].rstrip()
        if self._state == "thinking":
            rest = rest.lstrip() if self._silent else rest
            return rest.rstrip(), ""
        return "", rest

    @property
    def _awaited(self) -> str:
        """The mark that ends this part."""
        begin, end = self._wrap or ("", "")
        return {"before": START, "thinking": END, "unwrapping": begin, "wrapped": end, "answer": ""}[self._state]

    def _before(self) -> None:
        found = self._pending.lstrip()
        if found.startswith(START):
            self._pending, self._state = found[len(START) :], "thinking"
        elif found and not START.startswith(found):
            if self._begins:
                self._state = "thinking"
            else:
                self._state, self._silent = "answer", False

    def _thinking(self) -> str:
        at = self._pending.find(END)
        if at >= 0:
            told, self._pending = self._pending[:at].rstrip(), self._pending[at + len(END) :]
        else:
            ready = _certain(self._pending, END)
            told, self._pending = self._pending[:ready], self._pending[ready:]
        if self._silent:
            told = told.lstrip()
        self._silent = self._silent and not told
        if at >= 0:
            self._silent = True
            self._begin_answer()
        return told

    def _begin_answer(self) -> None:
        self._state = "unwrapping" if self._wrap else "answer"

    def _unwrap(self) -> None:
        assert self._wrap is not None
        found = self._pending.lstrip()
        if found.startswith(self._wrap[0]):
            self._pending, self._state = found[len(self._wrap[0]) :], "wrapped"
        elif found and not self._wrap[0].startswith(found):
            self._state = "answer"

    def _wrapped(self) -> str:
        assert self._wrap is not None
        at = self._pending.find(self._wrap[1])
        if at >= 0:
            told, self._pending = self._pending[:at].rstrip(), self._pending[at + len(self._wrap[1]) :]
        else:
            ready = _certain(self._pending, self._wrap[1])
            told, self._pending = self._pending[:ready], self._pending[ready:]
        if self._silent:
            told = told.lstrip()
        self._silent = self._silent and not told
        if at >= 0:
            self._state, self._silent = "answer", True
        return told

    def _answer(self) -> str:
        told, self._pending = self._pending, ""
        if self._silent:
            told = told.lstrip()
            self._silent = not told
        return told


def _certain(text: str, mark: str) -> int:
    """How much of ``text`` is neither the beginning of ``mark`` nor white space before it."""
    return len(text[: len(text) - _beginning(text, mark)].rstrip())


def _beginning(text: str, mark: str) -> int:
    """The length of the longest end of ``text`` that begins ``mark`` without being all of it."""
    return next((length for length in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:length])), 0)
