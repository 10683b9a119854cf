"""``dovetail chat``: a line in, an answer as it is written."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.errors import ExitCode, Problem, UserError
from frontends.cli.options import SAMPLING, parsed, sampling, sampling_options, server_options
from frontends.cli.screen import Screen

_HELP = """/exit             leave (also Ctrl-D)
/reset            forget the conversation
/retry            ask the last question again
/undo             forget the last question and its answer
/system TEXT      tell the model something before the conversation, which is then forgotten; without TEXT nothing is told
/set NAME VALUE   set temperature, max_tokens, top_p, top_k, seed ...; without VALUE as the model has it; alone: show all
/save FILE        write the conversation as JSON, as `dovetail tokenizer chat` and the API's "messages" take it
/help             this
\\ at a line's end the line goes on in the next
Ctrl-C            stop the answer
"""


class Conversation:
    def __init__(self, client: Any, settings: dict[str, Any], system: str | None) -> None:
        self._client = client
        self.settings = settings
        self.messages: list[dict[str, str]] = []
        self.model = settings["model"]
        self.begin(system)

    def begin(self, system: str | None) -> None:
        self.system = system
        self.messages = [{"role": "system", "content": system}] if system else []

    def ask(self, text: str, screen: Screen) -> None:
        """:raises UserError: when there is no answer; the question is then forgotten."""
        self.messages.append({"role": "user", "content": text})
        try:
            answer = screen.show(self._client.stream("/v1/chat/completions", {**self.settings, "messages": self.messages}))
        except BaseException:
            self.messages.pop()
            raise
        self.messages.append({"role": "assistant", "content": answer})

    def take_back(self) -> str | None:
        """The last question, which is forgotten with its answer."""
        asked = [index for index, message in enumerate(self.messages) if message["role"] == "user"]
        if not asked:
            return None
        question = self.messages[asked[-1]]["content"]
        del self.messages[asked[-1] :]
        return question


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dovetail chat",
        description="Talk to a model in the terminal; in a pipe each line is a question, and answers are bare text.",
        epilog="What can be typed beside questions:\n\n" + _HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[server_options(), sampling_options()],
        allow_abbrev=False,
    )
    parser.add_argument("--system-prompt", metavar="TEXT", help="what the model is told before the conversation")
    parser.add_argument("-q", "--quick", metavar="TEXT", help="ask this one question, print the answer, end")
    return parser


def chat(arguments: Sequence[str]) -> int:
    options, server_flags = parsed(parser(), arguments)
    from frontends.cli.client import connected

    screen = Screen()
    with connected(options, server_flags) as client:
        settings = {"model": options.model_name or client.first_model(), **sampling(options)}
        conversation = Conversation(client, settings, options.system_prompt)
        if options.quick is not None:
            conversation.ask(options.quick, screen)
            return ExitCode.OK
        screen.note(f"talking to {conversation.model} at {client.url}; /help for what else can be typed")
        for line in screen.lines("you"):
            try:
                if not line.startswith("/"):
                    conversation.ask(line, screen)
                elif not _command(line, conversation, screen):
                    break
            except UserError as error:
                if not screen.terminal:
                    raise
                screen.problem(error)
    return ExitCode.OK


def _command(line: str, conversation: Conversation, screen: Screen) -> bool:
    """False when the talk is over."""
    word, _, rest = line.partition(" ")
    rest = rest.strip()
    match word:
        case "/exit" | "/quit":
            return False
        case "/reset":
            conversation.begin(conversation.system)
            screen.note("the conversation is forgotten")
        case "/retry" | "/undo":
            question = conversation.take_back()
            if question is None:
                sys.stderr.write("nothing was asked yet\n")
            elif word == "/retry":
                conversation.ask(question, screen)
            else:
                screen.note(f"forgotten: {question.splitlines()[0][:60]}")
        case "/system":
            conversation.begin(rest or None)
            screen.note("the model is told so from now on" if rest else "the model is told nothing")
        case "/set":
            _set(rest, conversation.settings)
        case "/save":
            _save(rest, conversation.messages)
            screen.note(f"{len(conversation.messages)} messages are in {rest}")
        case "/help":
            sys.stdout.write(_HELP)
        case _:
            sys.stderr.write(f"there is no {word}: /help lists what there is\n")
    return True


def _set(said: str, settings: dict[str, Any]) -> None:
    name, _, value = said.replace("=", " ", 1).partition(" ")
    name = name.replace("-", "_")
    if not name:
        for each in SAMPLING:
            sys.stdout.write(f"{each} = {settings.get(each, 'as the model has it')}\n")
    elif name not in SAMPLING:
        sys.stderr.write(f"there is no {name} to set: {', '.join(SAMPLING)}\n")
    elif not value.strip():
        settings.pop(name, None)
    else:
        try:
            settings[name] = json.loads(value)
        except (ValueError, RecursionError):
            settings[name] = value.strip()  # the server says what is wrong with it


def _save(name: str, messages: list[dict[str, str]]) -> None:
    try:
        Path(os.path.expanduser(name)).write_text(json.dumps(messages, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        problem = Problem(f"the conversation cannot be written to {name or 'a file without a name'}: {why}", "/save")
        raise UserError(problem, exit_code=ExitCode.FAILED) from None
