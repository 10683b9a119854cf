"""What a command line may ask for beside settings. Known before anything else is imported."""

from __future__ import annotations

from collections.abc import Sequence

ACTIONS = ("--help", "--version", "--list-plugins", "--explain", "--dump-config", "--trace-plugins")
"""``core.serve`` does it."""


def asked(tokens: Sequence[str]) -> frozenset[str]:
    """Those of the ``ACTIONS`` that are among these tokens."""
    given = {"--help" if token == "-h" else normalized(token) for token in tokens}
    return frozenset(given.intersection(ACTIONS))


def normalized(token: str) -> str:
    """``--a_b=x`` as ``--a-b=x``."""
    if not token.startswith("--"):
        return token
    name, equals, value = token.partition("=")
    return name.replace("_", "-") + equals + value
