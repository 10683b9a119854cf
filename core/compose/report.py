"""What a composition tells: help, the installed plugins, every choice and its reason, and a config file that repeats it."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, SecretStr

from core.compose.facts import CORE_FACTS, show
from core.compose.plan import Plan
from core.compose.settings import KIND_SETTINGS, CoreSettings
from core.compose.vocabulary import Vocabulary, Word
from core.errors import problem_text
from core.plugin_manager import PluginManager

KEY_FACTS = (
    "device.name",
    "device.memory_bytes",
    "device.free_bytes",
    "cpu.cores",
    "parallel.ranks",
    "model.architecture",
    "model.parameters",
    "model.max_positions",
    "memory.weights_bytes",
    "memory.activation_bytes",
    "kv.num_pages",
    "kv.page_size",
    "kv.capacity_tokens",
    "memory.kv_bytes",
    "memory.total_bytes",
    "memory.budget_bytes",
)


# --- --help -------------------------------------------------------------------------------------------------------------


def help_text(program: str, manager: PluginManager) -> str:
    vocabulary = Vocabulary(manager)
    parser = argparse.ArgumentParser(
        prog=program,
        usage="%(prog)s [--config FILE] [--plugins A,B] [settings]",
        description="Serve a small language model from a core that composes plugins. Without flags it serves the demo.",
        epilog="Each setting can also stand in the config file (model = ..., a table for each plugin) and in the environment "
        "(DOVETAIL_MODEL, DOVETAIL_PLUGIN__SETTING). Flags win over the environment, and that over the file.",
        add_help=False,
        allow_abbrev=False,
    )
    actions = parser.add_argument_group("what to do")
    actions.add_argument("--config", metavar="FILE", help="TOML or YAML file with settings")
    for flag, text in (
        ("--list-plugins", "show what is installed, and exit"),
        ("--explain", "show every choice, where each value was set and why, and exit"),
        ("--dump-config", "print a config file that repeats this composition, and exit"),
        ("--trace-plugins", "print every hook call and what it returned"),
        ("--version", "print the version, and exit"),
    ):
        actions.add_argument(flag, action="store_true", help=text)
    actions.add_argument("-h", "--help", action="store_true", help="print this, and exit")
    _add_words(parser.add_argument_group("settings"), "", vocabulary)
    for plugin in manager.plugins:
        if any(word.plugin == plugin.name and word.has_meaning for word in vocabulary.words.values()):
            summary = "; ".join(dict.fromkeys(offer.summary for offer in plugin.offers))
            _add_words(parser.add_argument_group(f"plugin {plugin.name}", summary.replace("%", "%%")), plugin.name, vocabulary)
    return parser.format_help()


def _add_words(group: argparse._ArgumentGroup, plugin: str, vocabulary: Vocabulary) -> None:
    for name, word in vocabulary.words.items():
        if word.plugin != plugin or not name.startswith("-") or not word.has_meaning or _is_negation(word, vocabulary):
            continue
        names = [name, f"--no-{name[2:]}"] if not word.takes_value and f"--no-{name[2:]}" in vocabulary.words else [name]
        if word.takes_value:
            group.add_argument(*names, dest=name, metavar=_placeholder(word), help=_help(word))
        else:
            group.add_argument(*names, dest=name, action="store_true", help=_help(word))


def _is_negation(word: Word, vocabulary: Vocabulary) -> bool:
    return word.name.startswith("--no-") and f"--{word.name[5:]}" in vocabulary.words


def _placeholder(word: Word) -> str:
    if word.setting is None:
        return "|".join(sorted(word.features))
    return word.setting.key[-1].upper()


def _help(word: Word) -> str:
    text = word.summary
    if word.setting is not None and "default" not in text:
        default = word.setting.default
        if isinstance(default, (tuple, list)):
            default = ",".join(map(str, default))
        if default not in (None, ""):
            text += f" (default: {str(default).lower() if isinstance(default, bool) else default})"
    if word.alias and word.setting is not None:
        text += f"; the same as {word.setting.flag}"
    return text.replace("%", "%%")


# --- --list-plugins -----------------------------------------------------------------------------------------------------


def list_text(manager: PluginManager) -> str:
    Vocabulary(manager)  # what is wrong with a plugin's settings or flags shows only when all are put together
    rows = []
    for plugin in manager.plugins:
        detail = plugin.error
        if plugin.state == "loaded":
            kinds: dict[str, list[str]] = {}
            for offer in plugin.offers:
                kinds.setdefault(offer.kind.replace("_", " "), []).append(offer.name)
            detail = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items())
        rows.append((plugin.name, plugin.state, plugin.provenance, detail))
    lines = list(_table(rows)) or ["no plugins are installed"]
    lines += [problem_text(problem, "warning") for problem in manager.conflicts]
    return "\n".join(lines) + "\n"


# --- --explain ----------------------------------------------------------------------------------------------------------


def explain_text(plan: Plan) -> str:
    lines = ["chosen"]
    rows = [
        (f"  {choice.kind.replace('_', ' ')}", choice.name, f"plugin {choice.plugin}, {choice.provenance}", choice.origin)
        for choice in plan.choices
    ]
    if plan.chosen("quantizer") is None:
        rows.append(("  quantizer", "none", "weights keep the number format", plan.origins.get("quantization", "default")))
    if plan.chosen("head_quantizer") is None:
        rows.append(
            ("  head quantizer", "none", "the head keeps the number format", plan.origins.get("head_quantization", "default"))
        )
    lines += _table(rows)
    lines += [f"  why {name}: {plan.reasons[name]}" for name in KIND_SETTINGS.values() if name in plan.reasons]
    lines += ["", "settings"]
    shown = [name for name in plan.settings if name not in KIND_SETTINGS.values()]
    lines += _table((f"  {name}", _plain(plan.settings[name]), _why(name, plan)) for name in shown)
    for plugin, section in plan.sections.items():
        lines += ["", f"settings of {plugin}"]
        lines += _table(
            (f"  {name}", _plain(value), plan.origins.get(f"{plugin}.{name}", "")) for name, value in section.items()
        )
    lines += ["", "facts"]
    facts = (*KEY_FACTS, *_facts_of_plugins(plan))
    lines += _table((f"  {name}", show(name, plan.facts[name]), plan.reasons.get(name, "")) for name in facts)
    if plan.warnings:
        lines += ["", "warnings", *(f"  {line}" for warning in plan.warnings for line in str(warning).splitlines())]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _facts_of_plugins(plan: Plan) -> list[str]:
    """Those that rules of plugins declare; a plugin's settings, which are facts too, stand in their own table."""
    cores = {fact.name for fact in CORE_FACTS}
    return [name for name in plan.facts if name not in cores and not name.startswith("settings.")]


def _why(name: str, plan: Plan) -> str:
    origin = plan.origins.get(name, "")
    return f"{origin}: {plan.reasons[name]}" if name in plan.reasons else origin


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, (tuple, list)):
        return ", ".join(map(str, value)) or "-"
    return str(value)


def _table(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Columns as wide as their widest cell; the last runs free."""
    cells = [tuple(row) for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]) - 1)] if cells else []
    for row in cells:
        yield "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()


# --- --dump-config ------------------------------------------------------------------------------------------------------


def dump_text(plan: Plan) -> str:
    """TOML that composes to the same plan on the same machine: every choice and every resolved value spelled out."""
    lines = [f"plugins = {_toml(plan.plugins)}"]
    for name in CoreSettings.model_fields:
        value = plan.settings[name]
        if name != "plugins" and value is not None and value != ():
            lines.append(f"{name} = {_toml(value)}")
    for plugin, section in plan.sections.items():
        values = {name: value for name, value in section.items() if value is not None}
        if values:
            lines += ["", f"[{plugin}]", *(_line(name, value) for name, value in values.items())]
    return "\n".join(lines) + "\n"


def _line(name: str, value: Any) -> str:
    items = value if isinstance(value, (tuple, list)) else (value,)
    if any(isinstance(item, SecretStr) for item in items):
        return f"# {name} is secret and not written here"
    return f"{_key(name)} = {_toml(value)}"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_none=True)
    if isinstance(value, Mapping):
        return (
            "{" + ", ".join(f"{_key(str(name))} = {_toml(inner)}" for name, inner in value.items() if inner is not None) + "}"
        )
    if isinstance(value, (set, frozenset)):
        value = sorted(value)
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_toml(each) for each in value) + "]"
    # A JSON string is a TOML basic string but for characters beyond the basic plane and DEL.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
