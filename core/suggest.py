"""The nearest known name to a mistyped one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" with the nearest known name, or nothing when none is near."""
    near = nearest(name, known)
    return f"; did you mean {near!r}?" if near else ""


def nearest(name: str, known: Iterable[str]) -> str | None:
    by_plain = {plain(candidate): candidate for candidate in sorted(known)}
    matches = difflib.get_close_matches(plain(name), list(by_plain), n=1, cutoff=0.6)
    return by_plain[matches[0]] if matches else None


def plain(name: str) -> str:
    return name.casefold().replace("-", "_").lstrip("_")
