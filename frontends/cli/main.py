"""``dovetail``: the command line. Only what a subcommand needs is imported, once it is known which one it is."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from core.errors import ExitCode, UserError, problem_text

INTERRUPTED = 130  # what a shell expects of a program ended by Ctrl-C
DEFAULT_URL = "http://127.0.0.1:8000"
_HANDED_ON = {
    "serve": "start the server; every flag of `python -m core.serve`",
    "bench": "measure; every flag of `python -m core.bench`",
    "plan": "what a configuration takes of memory, and which GPUs run it; every flag of `python -m core.plan`",
    "quantize": "save a model with its weights packed, so that servers load it as it is",
}


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. Never raises for what a user did."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except UserError as error:
        sys.stderr.write("".join(f"{problem_text(problem)}\n" for problem in error.problems))
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has left; the last flush must not fail too
        return ExitCode.FAILED


def _dispatch(arguments: list[str]) -> int:
    # These own their flags, --help included, so argparse must not see them.
    match arguments[:1]:
        case ["serve"]:
            return _serve(arguments[1:])
        case ["bench"]:
            return _bench(arguments[1:])
        case ["plan"]:
            return _plan(arguments[1:])
        case ["quantize"]:
            from frontends.cli.quantize import quantize

            return quantize(arguments[1:])
    options, rest = _parser().parse_known_args(arguments)
    if rest and not getattr(options, "model", None):
        _parser().error(f"unrecognized arguments: {' '.join(rest)}")
    match options.command:
        case "plugins":
            return _serve(["--list-plugins"])
        case "chat":
            from frontends.cli.talk import chat

            return chat(options, rest)
        case _:
            from frontends.cli.talk import complete

            return complete(options, rest)


def _serve(arguments: list[str]) -> int:
    from core.serve import main as serve

    return serve(arguments, program="dovetail serve")


def _bench(arguments: list[str]) -> int:
    from core.bench.command import main as bench

    return bench(arguments)


def _plan(arguments: list[str]) -> int:
    from core.plan.command import main as plan

    return plan(arguments, program="dovetail plan")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dovetail", description="serve a small language model, or talk to one")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in _HANDED_ON.items():
        commands.add_parser(name, help=summary, add_help=False)
    talking = _talking_options()
    chat = commands.add_parser("chat", parents=[talking], allow_abbrev=False, help="talk to a model in the terminal")
    chat.add_argument("--system-prompt", metavar="TEXT", help="what the model is told before the conversation")
    chat.add_argument("-q", "--quick", metavar="TEXT", help="ask this one question, print the answer, end")
    complete = commands.add_parser("complete", parents=[talking], allow_abbrev=False, help="let a model continue a text")
    complete.add_argument(
        "-q", "--quick", metavar="TEXT", help="continue this one text, end; without it each line typed is one"
    )
    commands.add_parser("plugins", help="list what is installed, what it offers, what is broken and why")
    return parser


def _talking_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--url", default=DEFAULT_URL, help="of a running server (default: %(default)s)")
    options.add_argument(
        "--model",
        help="start a server with this model for as long as the talk lasts; further flags go to it, as to `serve`",
    )
    options.add_argument("--model-name", metavar="NAME", help="which of the server's models (default: its first)")
    options.add_argument("--api-key", metavar="KEY", help="for a server behind a gateway that wants one")
    options.add_argument("--max-tokens", type=int, metavar="N", help="longest answer")
    options.add_argument("--temperature", type=float, metavar="T", help="0 always takes the likeliest token")
    options.add_argument("--top-p", type=float, metavar="P", help="sample from the likeliest tokens that make up this mass")
    options.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same answer")
    return options


if __name__ == "__main__":
    sys.exit(main())
