"""``docs/from-fastdeploy.md``: where FastDeploy's flags and variables have gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from page_parameters import default, meaning

from core.compose.vocabulary import Vocabulary, Word
from core.offers import ForeignWord
from core.plugin_manager import PluginManager

NOTE = """\
<!-- Generated from docs/heads/from-fastdeploy.md, plugins/fastdeploy_compat and the plugins' aliases by docs/build.py:
change those, then run `nox -s docs -- --write`. -->
"""
HEAD = Path(__file__).with_name("heads") / "from-fastdeploy.md"

EFFECTS = {
    "none": "taken; so anyway",
    "warns": "**warns**, no effect",
    "refuses": "**refused**",
    "later": "**not built yet**, refused",
    "unknown": "**refused**, with the nearest name",
}


def page(manager: PluginManager, flags: dict[str, dict[str, str]], variables: dict[str, str]) -> str:
    vocabulary = Vocabulary(manager)
    parts = [
        NOTE + "\n" + HEAD.read_text(encoding="utf-8").rstrip(),
        "## Flags",
        "Defaults are FastDeploy's of April 2026; ours stand behind where they are others.",
    ]
    for title, names in flags.items():
        rows = [row(name, theirs, vocabulary.find(name.replace("_", "-")), vocabulary) for name, theirs in names.items()]
        parts += [f"### {title}", table(rows)]
    rows = [
        row(name, theirs, vocabulary.find(name) or vocabulary.begins(name), vocabulary) for name, theirs in variables.items()
    ]
    parts += ["## Variables", table(rows)]
    parts += ["Any other variable that begins with `FD_` is refused, with the nearest name that is one."]
    return "\n\n".join(parts) + "\n"


def table(rows: list[str]) -> str:
    return "\n".join(["| theirs | default | here |", "|---|---|---|", *rows])


def row(name: str, theirs: str, word: Word | None, vocabulary: Vocabulary) -> str:
    if word is None:
        raise LookupError(f"nothing is known of {name}")
    said = [meaning(word, vocabulary) + other_default(theirs, word)] if word.has_meaning else []
    said += [told(foreign) for foreign in word.foreign]
    return f"| `{name}` | {theirs} | {'; '.join(said)} |"


def told(foreign: ForeignWord) -> str:
    values = f" for {', '.join(f'`{value}`' for value in foreign.values)}" if foreign.values else ""
    fine = f" (nothing is told of {', '.join(f'`{value}`' for value in foreign.fine)})" if foreign.fine and not values else ""
    return f"{EFFECTS[foreign.effect]}{values}: {foreign.reason}{fine}"


def other_default(theirs: str, word: Word) -> str:
    ours: Any = word.setting.default if word.setting is not None else None
    if word.setting is None or ours is None or ours in ((), "", "auto", {}):
        return ""
    same = str(ours).casefold() == theirs.casefold() or (isinstance(ours, bool) and theirs == ("on" if ours else "off"))
    same = same or (isinstance(ours, float) and theirs == f"{ours:g}")
    return "" if same else f", default {default(ours)}"
