"""The terminal, or the pipe that stands in its place."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TextIO

from core.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

_SHOWN_CONTROLS = frozenset("\n\t")
_MORE = "\\"


def coloured(stream: TextIO) -> bool:
    """Whether colours may be written there: on a terminal that has some, unless $NO_COLOR says otherwise."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def console(*, stderr: bool = False) -> Console:
    """For tables and bars: plain in a pipe, where nothing is cut to a width either."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, no_color=not coloured(stream), highlight=False, width=None if stream.isatty() else 10_000)


def harmless(text: str) -> str:
    """Without the control characters by which a text could steer the terminal."""
    return "".join(char for char in text if char.isprintable() or char in _SHOWN_CONTROLS)


class Screen:
    """Where a talk is shown: with colours and prompts on a terminal, bare text in a pipe."""

    def __init__(self) -> None:
        self.terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self._coloured = self.terminal and coloured(sys.stdout)
        if self.terminal:
            import readline  # noqa: F401 - it gives input() its line editing

    def lines(self, label: str) -> Iterator[str]:
        """What the user types, until the end of input. On a terminal a line that ends in a backslash goes on in the next."""
        while True:
            try:
                line = input(self._prompt(f"{label}> "))
                while self.terminal and line.endswith(_MORE):
                    line = f"{line.removesuffix(_MORE)}\n{input(self._prompt('.' * len(label) + '> '))}"
            except (EOFError, KeyboardInterrupt):
                return
            except UnicodeDecodeError:
                raise UserError.of("the input is not valid UTF-8", "", "give it in UTF-8") from None
            if line.strip():
                yield line

    def _prompt(self, text: str) -> str:
        if not self.terminal:
            return ""
        return f"\001\033[1;36m\002{text}\001\033[0m\002" if self._coloured else text  # 001, 002: of no width, for readline

    def note(self, text: str) -> None:
        if self.terminal:
            sys.stdout.write(f"\033[2m{text}\033[0m\n" if self._coloured else f"{text}\n")

    def problem(self, error: UserError) -> None:
        sys.stderr.write("".join(f"dovetail: error: {problem}\n" for problem in error.problems))

    def show(self, pieces: Iterable[str]) -> str:
        """Write an answer as it comes; gives it back whole. Ctrl-C ends it where it is."""
        written: list[str] = []
        try:
            for piece in pieces:
                written.append(piece)
                sys.stdout.write(harmless(piece) if self.terminal else piece)
                sys.stdout.flush()
        except KeyboardInterrupt:
            if not self.terminal:
                raise
        finally:
            if written:
                sys.stdout.write("\n")
                sys.stdout.flush()
        return "".join(written)
