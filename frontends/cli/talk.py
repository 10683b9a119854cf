"""``dovetail chat`` and ``dovetail complete``: a line in, an answer as it is written."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from core.errors import ExitCode, UserError
from frontends.cli.client import Client
from frontends.cli.own_server import own_server

_HELP = """/exit          leave (also Ctrl-D)
/reset         forget the conversation
/system TEXT   tell the model something before the conversation, which is then forgotten; without TEXT nothing is told
/help          this
Ctrl-C         stop the answer
"""
_SHOWN_CONTROLS = frozenset("\n\t")


class Screen:
    """Where the talk is shown: with colours and prompts on a terminal, bare text in a pipe."""

    def __init__(self) -> None:
        self.terminal = sys.stdin.isatty() and sys.stdout.isatty()
        if self.terminal:
            import readline  # noqa: F401 - it gives input() its line editing

    def lines(self, label: str) -> Iterator[str]:
        """What the user types, until the end of input."""
        while True:
            try:
                line = input(f"{label}> " if self.terminal else "")
            except (EOFError, KeyboardInterrupt):
                return
            except UnicodeDecodeError:
                raise UserError.of("the input is not valid UTF-8", "", "give it in UTF-8") from None
            if line.strip():
                yield line

    def note(self, text: str) -> None:
        if self.terminal:
            from rich.console import Console

            Console(highlight=False).print(text, style="dim", markup=False)

    def problem(self, error: UserError) -> None:
        sys.stderr.write("".join(f"dovetail: error: {problem}\n" for problem in error.problems))

    def show(self, pieces: Iterable[str]) -> str:
        """Write an answer as it comes; gives it back whole. Ctrl-C ends it where it is."""
        written: list[str] = []
        try:
            for piece in pieces:
                written.append(piece)
                sys.stdout.write(_harmless(piece) if self.terminal else piece)
                sys.stdout.flush()
        except KeyboardInterrupt:
            if not self.terminal:
                raise
        finally:
            if written:
                sys.stdout.write("\n")
                sys.stdout.flush()
        return "".join(written)


class Conversation:
    def __init__(self, client: Client, settings: dict[str, Any], system: str | None) -> None:
        self._client = client
        self._settings = settings
        self._messages: list[dict[str, str]] = []
        self.model = settings["model"]
        self.begin(system)

    def begin(self, system: str | None) -> None:
        self.system = system
        self._messages = [{"role": "system", "content": system}] if system else []

    def ask(self, text: str, screen: Screen) -> None:
        """:raises UserError: when there is no answer; the question is then forgotten."""
        self._messages.append({"role": "user", "content": text})
        try:
            answer = screen.show(self._client.stream("/v1/chat/completions", {**self._settings, "messages": self._messages}))
        except UserError:
            self._messages.pop()
            raise
        self._messages.append({"role": "assistant", "content": answer})


def chat(options: argparse.Namespace, server_flags: Sequence[str]) -> int:
    screen = Screen()
    with _client(options, server_flags) as client:
        conversation = Conversation(client, _settings(options, client), options.system_prompt)
        if options.quick is not None:
            conversation.ask(options.quick, screen)
            return ExitCode.OK
        screen.note(f"talking to {conversation.model} at {client.url}; /help for what else can be typed")
        for line in screen.lines("you"):
            if line.startswith("/"):
                if not _command(line, conversation, screen):
                    break
                continue
            try:
                conversation.ask(line, screen)
            except UserError as error:
                if not screen.terminal:
                    raise
                screen.problem(error)
    return ExitCode.OK


def complete(options: argparse.Namespace, server_flags: Sequence[str]) -> int:
    screen = Screen()
    with _client(options, server_flags) as client:
        settings = _settings(options, client)
        for text in screen.lines("text") if options.quick is None else [options.quick]:
            try:
                screen.show(client.stream("/v1/completions", {**settings, "prompt": text}))
            except UserError as error:
                if not screen.terminal or options.quick is not None:
                    raise
                screen.problem(error)
    return ExitCode.OK


def _command(line: str, conversation: Conversation, screen: Screen) -> bool:
    """False when the talk is over."""
    word, _, rest = line.partition(" ")
    match word:
        case "/exit" | "/quit":
            return False
        case "/reset":
            conversation.begin(conversation.system)
            screen.note("the conversation is forgotten")
        case "/system":
            conversation.begin(rest.strip() or None)
            screen.note("the model is told so from now on" if rest.strip() else "the model is told nothing")
        case "/help":
            sys.stdout.write(_HELP)
        case _:
            sys.stderr.write(f"there is no {word}: /help lists what there is\n")
    return True


def _settings(options: argparse.Namespace, client: Client) -> dict[str, Any]:
    names = ("max_tokens", "temperature", "top_p", "seed")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    return {"model": options.model_name or client.first_model(), **given}


@contextmanager
def _client(options: argparse.Namespace, server_flags: Sequence[str]) -> Iterator[Client]:
    if options.model is None:
        with Client(options.url, options.api_key) as client:
            yield client
        return
    with own_server(options.model, server_flags) as url, Client(url) as client:
        yield client


def _harmless(text: str) -> str:
    """Without the control characters by which a text could steer the terminal."""
    return "".join(char for char in text if char.isprintable() or char in _SHOWN_CONTROLS)
