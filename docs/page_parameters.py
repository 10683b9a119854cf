"""``docs/parameters.md``: every setting with its key, flags, variables, type and default, the core's and the plugins'."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from core.compose.settings import PREFIX, CoreSettings
from core.compose.vocabulary import Key, Setting, Vocabulary, Word
from core.plugin_manager import Plugin, PluginManager

PAGE = """\
<!-- Generated from the settings of core/compose and of the plugins by docs/build.py:
change those, then run `nox -s docs -- --write`. -->

# Parameters

Each setting can stand in a configuration file (TOML, or YAML with flags' names), in the environment, and on the command line;
flags win over the environment, and that over the file. Flags may be written with hyphens or underscores. The offline `LLM`
takes the keys as keyword arguments. Of a flag that stands twice with two values the last is taken, with a warning, unless its
values are a list, which then has them all. `python -m core.serve --explain` shows every value and where it was set.

A plugin's settings are a table of the file (`[{example}]`), variables `{prefix}{upper}__NAME` and flags `--{dashed}-name`.

## The core

{core}

{plugins}
"""


def page(manager: PluginManager) -> str:
    vocabulary = Vocabulary(manager)
    example = "cache_prefix"
    plugins = [each for each in manager.plugins if own(each) and has_words(each, vocabulary)]
    return PAGE.format(
        prefix=PREFIX,
        example=example,
        upper=example.upper(),
        dashed=example.replace("_", "-"),
        core=table([vocabulary.settings[(name,)] for name in CoreSettings.model_fields], vocabulary),
        plugins="\n\n".join(section(each, vocabulary) for each in plugins),
    )


def own(plugin: Plugin) -> bool:
    return plugin.provenance.startswith("dovetail-serve ")


def has_words(plugin: Plugin, vocabulary: Vocabulary) -> bool:
    return bool(vocabulary.fields(plugin.name)) or any(True for _ in choosing(plugin.name, vocabulary))


def section(plugin: Plugin, vocabulary: Vocabulary) -> str:
    parts = [f"## `{plugin.name}`", "; ".join(dict.fromkeys(offer.summary for offer in plugin.offers)) + "."]
    settings = [vocabulary.settings[plugin.name, name] for name in vocabulary.fields(plugin.name)]
    if settings:
        parts.append(table(settings, vocabulary))
    if chosen := list(choosing(plugin.name, vocabulary)):
        parts += ["| given | chooses |\n|---|---|\n" + "\n".join(chosen)]
    if others := list(elsewhere(plugin.name, vocabulary)):
        parts += ["| given | sets |\n|---|---|\n" + "\n".join(others)]
    return "\n\n".join(parts)


def table(settings: list[Setting], vocabulary: Vocabulary) -> str:
    lines = ["| key | flags | variables | type | default | |", "|---|---|---|---|---|---|"]
    for setting in settings:
        words = [word for word in vocabulary.words.values() if word.setting is not None and word.setting.key == setting.key]
        flags = [word.name for word in words if word.name.startswith("-") and word.constant is not False]
        variables = [PREFIX + "__".join(setting.key).upper(), *(word.name for word in words if not word.name.startswith("-"))]
        cells = (
            f"`{setting.key[-1]}`",
            " ".join(f"`{name}`" for name in flags),
            " ".join(f"`{name}`" for name in variables),
            kind(setting.annotation),
            default(setting.default),
            setting.description.replace("|", "\\|"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def choosing(plugin: str, vocabulary: Vocabulary) -> Iterator[str]:
    """Rows of the flags and variables that choose what a plugin offers."""
    for word in vocabulary.words.values():
        for value, (key, offer) in word.features.items():
            if provider(key, offer, vocabulary) == plugin and not word.refuses:
                given = f"{word.name} {value}".strip() if word.name.startswith("-") else f"{word.name}={value or 1}"
                yield f"| `{given}` | `{'.'.join(key)} = {offer}` |"


def elsewhere(plugin: str, vocabulary: Vocabulary) -> Iterator[str]:
    """Rows of a plugin's words that set what is not its own."""
    for word in vocabulary.words.values():
        if word.plugin == plugin and word.setting is not None and word.setting.key[0] != plugin:
            yield f"| `{word.name}` | `{'.'.join(word.setting.key)}`: {word.summary} |"


def provider(key: Key, offer: Any, vocabulary: Vocabulary) -> str | None:
    kinds = {
        (plugin.name, each.name, each.kind)
        for plugin in vocabulary.manager.plugins
        for each in plugin.offers
        if each.name == offer
    }
    return next((plugin for plugin, _, kind in sorted(kinds) if setting_of(kind) == key), None)


def setting_of(kind: str) -> Key:
    from core.compose.settings import KIND_SETTINGS

    return (KIND_SETTINGS.get(kind, ""),)


def kind(annotation: Any) -> str:
    """A type as a reader takes it: "whole number", "one of `a`, `b`"."""
    names = {int: "whole number", float: "number", bool: "switch", str: "text"}
    if annotation in names:
        return names[annotation]
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (tuple, list, set, frozenset):
        return f"list of {kind(parts[0])}" if parts else "list"
    if origin is dict or annotation is dict:
        return "table"
    return " or ".join(kind(part) for part in parts if part is not type(None)) or "text"


def default(value: Any) -> str:
    if value is None or value == () or value == "" or value == {}:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "`" + (",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)) + "`"


def meaning(word: Word, vocabulary: Vocabulary) -> str:
    """What a word sets or chooses, in one cell."""
    if word.setting is not None:
        return f"`{'.'.join(word.setting.key)}`"
    ways = sorted(
        {f"`{'.'.join(key)} = {offer}`" + (f" for {value}" if value else "") for value, (key, offer) in word.features.items()}
    )
    return ", ".join(ways)
