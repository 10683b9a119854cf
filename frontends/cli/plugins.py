"""``dovetail plugins``: what is installed, what it offers, what is broken and why."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence

from core.errors import ExitCode


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dovetail plugins", description="What is installed, what each plugin offers, what is broken and why.",
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="as JSON")
    return parser


def plugins(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    if not options.json:
        from core.serve import main

        return main(["--list-plugins"])
    from core.compose.vocabulary import Vocabulary
    from core.plugin_manager import PluginManager

    manager = PluginManager.discover()
    Vocabulary(manager)  # what is wrong with a plugin's settings or flags shows only when all are put together
    found = [
        {
            "name": plugin.name,
            "state": plugin.state,
            "provenance": plugin.provenance,
            "error": plugin.error,
            "offers": [{"kind": offer.kind, "name": offer.name, "summary": offer.summary} for offer in plugin.offers],
        }
        for plugin in manager.plugins
    ]
    conflicts = [dataclasses.asdict(problem) for problem in manager.conflicts]
    sys.stdout.write(json.dumps({"plugins": found, "conflicts": conflicts}, indent=2) + "\n")
    return ExitCode.OK
