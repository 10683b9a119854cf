"""How much of a text must wait, because it may turn out to be the beginning of a mark."""

from __future__ import annotations


def beginning(text: str, mark: str) -> int:
    """The length of the longest end of ``text`` that begins ``mark`` without being all of it."""
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if text.endswith(mark[:length]):
            return length
    return 0


def certain(text: str, *marks: str) -> int:
    """How much of ``text`` is neither the beginning of a mark nor white space before one."""
    held = max(beginning(text, mark) for mark in marks)
    return len(text[: len(text) - held].rstrip())
