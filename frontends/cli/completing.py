"""``dovetail complete``: a text in, its continuation as it is written."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from core.errors import ExitCode, UserError
from frontends.cli.options import refuse_unknown, sampling, sampling_options, server_options, whole
from frontends.cli.screen import Screen

PATH = "/v1/completions"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dovetail complete",
        usage="%(prog)s [TEXT] [flags]",
        description="Let a model continue TEXT, a file, or what is piped in, and print the continuation as it is written. On a "
        "terminal, without any of them, each line typed is a text.",
        epilog="TEXT stands before the flags where the command starts a server of its own.",
        parents=[server_options(), sampling_options()],
        allow_abbrev=False,
    )
    parser.add_argument("-q", "--quick", metavar="TEXT", help="the same as TEXT")
    parser.add_argument("-f", "--file", metavar="FILE", help="continue this file's text; - for what is piped in")
    parser.add_argument("--lines", action="store_true", help="each line of the file, or of what is piped in, is a text")
    parser.add_argument("--echo", action="store_true", help="print the text before its continuation")
    parser.add_argument(
        "--logprobs", type=whole(0), metavar="N", help="with --json: log-probabilities, of N alternatives each token"
    )
    parser.add_argument("--json", action="store_true", help="print the server's whole answer, one line of JSON a text")
    return parser


def complete(arguments: Sequence[str]) -> int:
    options, texts, server_flags = _read(list(arguments))
    from frontends.cli.client import connected

    screen = Screen()
    with connected(options, server_flags) as client:
        settings = {"model": options.model_name or client.first_model(), "echo": options.echo, **sampling(options)}
        for text in screen.lines("text") if texts is None else texts:
            body = {**settings, "prompt": text}
            try:
                if options.json:
                    _print_whole(client.ask(PATH, body | {"logprobs": options.logprobs}))
                else:
                    screen.show(client.stream(PATH, body))
            except UserError as error:
                if not screen.terminal or texts is not None:
                    raise
                screen.problem(error)
    return ExitCode.OK


def _read(arguments: list[str]) -> tuple[argparse.Namespace, Iterable[str] | None, list[str]]:
    """The flags, the texts (None: those that will be typed), the flags of an own server."""
    text = arguments.pop(0) if arguments and not arguments[0].startswith("-") else None
    options, rest = parser().parse_known_args(arguments)
    if text is None and rest and not rest[-1].startswith("-") and not _takes_a_value(rest[:-1]):
        text = rest.pop()
    given = [each for each in (text, options.quick, options.file) if each is not None]
    if len(given) > 1:
        raise UserError.of("several texts are given", "", "give one: as TEXT, with --quick, or with --file")
    refuse_unknown(parser(), options, rest)
    if options.logprobs is not None and not options.json:
        raise UserError.of("log-probabilities are printed as JSON only", "--logprobs", "add --json")
    if options.file is None and given:
        return options, given, rest
    if options.file is None and sys.stdin.isatty():
        return options, None, rest
    found = _piped() if options.file in (None, "-") else _of_file(Path(os.path.expanduser(options.file)))
    whole_text = found.removesuffix("\n")  # which editors and echo write, and nobody means
    return options, _lines(whole_text) if options.lines else [whole_text], rest


def _takes_a_value(flags: Sequence[str]) -> bool:
    return bool(flags) and flags[-1].startswith("-") and "=" not in flags[-1]


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def _piped() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError:
        raise UserError.of("the input is not valid UTF-8", "", "give it in UTF-8") from None


def _of_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError.of(f"{path} is not valid UTF-8", "--file", "give it in UTF-8") from None
    except PermissionError:
        raise
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise UserError.of(f"{path} cannot be read: {why}", "--file", "check the path") from None


def _print_whole(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer, ensure_ascii=False) + "\n")
    sys.stdout.flush()
