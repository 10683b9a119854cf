"""Flags that several subcommands share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from typing import Any

DEFAULT_URL = "http://127.0.0.1:8000"
KEY_VARIABLE = "OPENAI_API_KEY"
SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop")


def server_options() -> argparse.ArgumentParser:
    """Which server: one that runs, or one of the command's own."""
    options = argparse.ArgumentParser(add_help=False)
    server = options.add_argument_group("the server")
    server.add_argument("--url", default=DEFAULT_URL, help="of a running server (default: %(default)s)")
    server.add_argument(
        "--model",
        help="start a server with this model for as long as the command runs; further flags go to it, as to `serve`",
    )
    server.add_argument("--model-name", metavar="NAME", help="which of the server's models (default: its first)")
    server.add_argument(
        "--api-key", metavar="KEY", help=f"what the server wants to be shown (default: ${KEY_VARIABLE}, where it is set)"
    )
    return options


def sampling_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    group = options.add_argument_group("the answer")
    group.add_argument("--max-tokens", type=int, metavar="N", help="longest answer")
    group.add_argument("--temperature", type=float, metavar="T", help="0 always takes the likeliest token")
    group.add_argument("--top-p", type=float, metavar="P", help="sample from the likeliest tokens that make up this mass")
    group.add_argument("--top-k", type=int, metavar="K", help="sample from the K likeliest tokens")
    group.add_argument("--min-p", type=float, metavar="P", help="leave out tokens less likely than P times the likeliest")
    group.add_argument("--repetition-penalty", type=float, metavar="R", help="above 1: say less of what was said already")
    group.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same answer")
    group.add_argument("--stop", action="append", metavar="TEXT", help="end where this would be written; repeatable")
    return options


def sampling(options: argparse.Namespace) -> dict[str, Any]:
    """What was said of it, as a request's fields."""
    return {name: value for name in SAMPLING if (value := getattr(options, name)) is not None}


def api_key(options: argparse.Namespace) -> str | None:
    key: str | None = options.api_key or os.environ.get(KEY_VARIABLE)
    return key or None


def parsed(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command's own flags, and those for its own server; where it starts none, there are no others."""
    options, rest = parser.parse_known_args(arguments)
    refuse_unknown(parser, options, rest)
    return options, rest


def refuse_unknown(parser: argparse.ArgumentParser, options: argparse.Namespace, rest: Sequence[str]) -> None:
    if rest and options.model is None:
        parser.error(f"unrecognized arguments: {' '.join(rest)} (flags of `serve` go with --model)")


def whole(least: int) -> Callable[[str], int]:
    """An argparse type."""

    def whole_number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least {least}")
        return int(text)

    return whole_number
