"""``dovetail``: the command line. Only what a subcommand needs is imported, once it is known which one it is."""

from __future__ import annotations

import os
import sys

# Nothing else up here, typing included: until ``main`` runs, a Ctrl-C would be answered with a traceback.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

COMMANDS = {
    "serve": ("start the server; every flag of `python -m core.serve`", "core.serve:main"),
    "chat": ("talk to a model in the terminal", "frontends.cli.talk:chat"),
    "complete": ("let a model continue a text, a file or what is piped in", "frontends.cli.completing:complete"),
    "run-batch": (
        "answer a file of requests in OpenAI's batch format; goes on where it was stopped",
        "frontends.cli.batch:run",
    ),
    "tokenizer": ("a model's tokens: encode, decode, count, show them, render a chat", "frontends.cli.tokenizing:tokenizer"),
    "models": ("which models are here; fetch one, verify one", "frontends.cli.models:models"),
    "quantize": ("save a model with its weights packed, so that servers load it as it is", "frontends.cli.quantize:quantize"),
    "plan": ("what a configuration takes of memory, and which GPUs run it", "core.plan.command:main"),
    "bench": ("measure; every flag of `python -m core.bench`", "core.bench.command:main"),
    "plugins": ("list what is installed, what it offers, what is broken and why", "frontends.cli.plugins:plugins"),
    "doctor": ("what is wrong with this machine or a configuration, and what to do", "frontends.cli.doctor:doctor"),
    "collect-env": ("a report of this machine to paste into an issue, secrets masked", "frontends.cli.environment:collect"),
    "completion": ("a script that completes commands and flags in bash, zsh or fish", "frontends.cli.completion:completion"),
}
"""Subcommand -> (what --help says of it, module:function). The function takes the arguments and returns the exit code."""

_SAYS_ITS_NAME = ("serve", "plan")


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. Never raises for what a user did."""
    try:
        return _guarded(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        return 130


def _guarded(arguments: list[str]) -> int:
    from core.interrupts import ended_at_once

    with ended_at_once():
        from core.errors import ExitCode, UserError, forbidden, problem_text

        command = _found(arguments)
    try:
        try:
            return command()
        except PermissionError as error:
            raise forbidden(error) from error
    except UserError as error:
        sys.stderr.write("".join(f"{problem_text(problem)}\n" for problem in error.problems))
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has left; the last flush must not fail too
        return ExitCode.FAILED


def _found(arguments: list[str]) -> Callable[[], int]:
    """What is to be called. Ends the program for --help and for what is no command."""
    if not arguments or arguments[0] not in COMMANDS:
        return lambda: _helped(arguments)
    name, *rest = arguments
    from importlib import import_module

    module, _, function = COMMANDS[name][1].partition(":")
    run = getattr(import_module(module), function)
    if name in _SAYS_ITS_NAME:
        return lambda: int(run(rest, program=f"dovetail {name}"))
    return lambda: int(run(rest))


def _helped(arguments: list[str]) -> int:
    if arguments[:1] == ["--version"]:
        from importlib.metadata import version

        sys.stdout.write(f"dovetail {version('dovetail-serve')}\n")
        return 0
    import argparse

    from core.suggest import did_you_mean

    parser = argparse.ArgumentParser(
        prog="dovetail",
        description="Serve a small language model, talk to one, or look after one.",
        epilog="dovetail COMMAND --help says more. `dovetail chat --model demo` is a good start.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version, and exit")
    commands = parser.add_subparsers(metavar="COMMAND [flags]", title="commands")
    for name, (summary, _) in COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    if arguments and not arguments[0].startswith("-"):
        parser.error(f"there is no command {arguments[0]!r}{did_you_mean(arguments[0], COMMANDS)}")
    if not arguments:
        parser.print_help()
        return 2
    parser.parse_args(arguments)
    return 2


if __name__ == "__main__":
    sys.exit(main())
