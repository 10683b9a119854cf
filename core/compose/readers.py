"""The four places where something can be said, each read into statements: config file, environment, flags, a Python call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from core.compose.actions import ACTIONS
from core.compose.first_pass import FirstPass
from core.compose.settings import PREFIX, CoreSettings
from core.compose.vocabulary import ON_OR_OFF, Key, Remark, Said, Setting, Vocabulary
from core.errors import Problem
from core.plugin_manager import Plugin
from core.suggest import did_you_mean, nearest

OTHER_VARIABLES = frozenset({f"{PREFIX}CONFIG", f"{PREFIX}DEVICE_PROBE"})
"""Variables of ours that are no settings."""


def _said_in_file(first: FirstPass, vocabulary: Vocabulary) -> Iterable[Said | Problem | Remark]:
    if first.file is not None:
        for name, value in first.file.values.items():
            if value is not None:  # YAML: a key without a value
                yield from _said_by_name(name, value, vocabulary, first.file.origin)


def _said_by_name(
    name: str, value: Any, vocabulary: Vocabulary, origin: Callable[[Key], str]
) -> Iterable[Said | Problem | Remark]:
    """A core setting, a plugin's table, or any flag's name with underscores."""
    flag = f"--{name.replace('_', '-')}"
    word, given = vocabulary.spelled(name, value)
    setting = vocabulary.settings.get((name,))
    if setting is not None and not (word is not None and word.foreign):
        yield Said((name,), _listed(setting, value), origin((name,)))
    elif isinstance(value, Mapping) and (word is None or vocabulary.manager.get(name) is not None):
        for key, inner in value.items():
            of_table = vocabulary.settings.get((name, str(key)))
            yield Said((name, str(key)), _listed(of_table, inner), origin((name, str(key))))
        if not value and vocabulary.manager.get(name) is None:
            yield unknown_key(Said((name,), value, origin((name,))), vocabulary)
    elif word is not None:
        said = word.say(given, origin((name,)))
        if said is not None:
            yield said
    elif flag not in vocabulary.belongs:
        yield Said((name,), value, origin((name,)))
    elif value is not False:
        yield vocabulary.unknown(flag, origin((name,)))


def _listed(setting: Setting | None, value: Any) -> Any:
    """A list may be one text with commas in files and calls too."""
    return setting.decode(value) if setting is not None and setting.is_list and isinstance(value, str) else value


def _said_in_environment(first: FirstPass, vocabulary: Vocabulary) -> Iterable[Said | Problem | Remark]:
    ours = {name: value for name, value in first.env.items() if name.upper().startswith(PREFIX) and value != ""}
    ours = {name: value for name, value in ours.items() if name.upper() not in OTHER_VARIABLES}
    if ours:
        yield from _said_in_our_variables(ours, vocabulary)
    for name, word in vocabulary.words.items():
        if not name.startswith("-") and first.env.get(name):
            said = word.say(first.env[name], f"${name}")
            if said is not None:
                yield said
    for name in vocabulary.belongs:
        if not name.startswith("-") and name not in vocabulary.words and first.env.get(name):
            yield vocabulary.unknown(name, f"${name}")
    for name, value in first.env.items():
        group = vocabulary.begins(name) if value and name not in vocabulary.words and name not in vocabulary.belongs else None
        if group is not None:
            told = dataclasses.replace(group, name=name).say(value, f"${name}")
            if group.foreign[0].effect == "unknown":
                yield vocabulary.unknown(name, f"${name}")
            elif told is not None:
                yield told


def _said_in_our_variables(ours: Mapping[str, str], vocabulary: Vocabulary) -> Iterable[Said | Problem | Remark]:
    from core.compose.environment import read_environment  # pydantic-settings takes longer to import than --help may take

    variables = {name.upper(): name for name in ours}
    sections = {plugin.name: plugin.section for plugin in vocabulary.manager.plugins if plugin.section is not None}
    for key, value in read_environment(CoreSettings, sections, ours).items():
        exact = PREFIX + "__".join(key).upper()
        name = variables.get(exact) or variables[PREFIX + key[0].upper()]
        setting = vocabulary.settings.get(key)
        yield Said(key, setting.decode(value) if setting and isinstance(value, str) else value, f"${name}")
    for upper, name in variables.items():
        head, nested, tail = upper[len(PREFIX) :].lower().partition("__")
        if head in sections and (nested or ours[name].lstrip().startswith("{")):
            continue
        if head in sections:
            yield Problem(
                f"plugin {head} has a table of settings, not the value {ours[name]!r}", f"${name}", (f"set ${name}__SETTING",)
            )
        elif nested:
            yield unknown_key(Said((head, tail), ours[name], f"${name}"), vocabulary)
        elif head not in CoreSettings.model_fields:
            plugin = vocabulary.manager.get(head)
            if plugin is not None:
                yield _not_its_setting(plugin, "", f"${name}", vocabulary)
            else:
                near = nearest(head, CoreSettings.model_fields)
                hint = f"; did you mean {PREFIX}{near.upper()}?" if near else ""
                yield Problem(f"there is no setting {head!r}{hint}", f"${name}", ("unset it, or see --help for every setting",))


def _said_in_flags(first: FirstPass, vocabulary: Vocabulary) -> Iterable[Said | Problem | Remark]:
    tokens = list(first.argv)
    lists: dict[Key, Said] = {}
    after, switch = "", ""  # the flag before, where it takes no value; this one
    while tokens:
        token = tokens.pop(0)
        after, switch = switch, ""
        name, equals, inline = token.partition("=") if token.startswith("--") else (token, "", "")
        value = inline if equals else None
        if token in ACTIONS or token == "-h":
            continue
        word = vocabulary.find(name) if name.startswith("-") else None
        takes_value = name == "--config" or (word is not None and word.takes_value)
        if takes_value and value is None:
            if not tokens or tokens[0].startswith("--"):
                yield Problem(f"{name} needs a value", "", (f"{name} VALUE",))
                continue
            value = tokens.pop(0)
        if name == "--config":
            continue
        if word is None:
            yield from _no_flag(name, after, vocabulary)
            if name.startswith("-") and value is None and tokens and not tokens[0].startswith("-"):
                tokens.pop(0)  # most likely its value; a second complaint would not help
            continue
        switch = name if value is None else ""
        said = word.say(value, name)
        if isinstance(said, Said) and word.setting is not None and word.setting.is_list and isinstance(said.value, list):
            before = lists.get(said.key)
            lists[said.key] = Said(said.key, [*(before.value if before else ()), *said.value], name)
        elif said is not None:
            yield said
    yield from lists.values()


def _no_flag(name: str, after: str, vocabulary: Vocabulary) -> Iterable[Problem]:
    if name.startswith("-"):
        yield vocabulary.unknown(name, name)
    elif after and name.casefold() in ON_OR_OFF:
        yield Problem(f"{name!r} is no flag, and {after} takes no value behind a space", "", (f"{after}={name}",))
    else:
        yield Problem(f"{name!r} is no flag", "", (f"if it is the model: --model {name}",))


def _said_in_call(first: FirstPass, vocabulary: Vocabulary) -> Iterable[Said | Problem | Remark]:
    for name, value in first.overrides.items():
        if name != "config" and value is not None:
            yield from _said_by_name(name, value, vocabulary, lambda key: f"LLM({key[0]}=...)")


LEVELS = (_said_in_file, _said_in_environment, _said_in_flags, _said_in_call)
"""Lowest first: what a later one says goes before what an earlier one said."""


def unknown_key(said: Said, vocabulary: Vocabulary) -> Problem:
    """A key no model has: of the core, of a plugin that has other settings, or of a plugin that is not there."""
    manager = vocabulary.manager
    if len(said.key) == 2:
        name, key = said.key
        plugin = manager.get(name)
        if plugin is not None:
            return _not_its_setting(plugin, key, said.origin, vocabulary)
        near = did_you_mean(name, (each.name for each in manager.plugins))
        return Problem(
            f"there is no plugin {name!r} to give {key!r} to{near}", said.origin, ("--list-plugins shows what is installed",)
        )
    key = said.key[0]
    plugin = manager.get(key)
    if plugin is not None and plugin.state == "loaded" and plugin.section is not None:
        return Problem(
            f"plugin {key} has a table of settings, not the value {said.value!r}",
            said.origin,
            (f"[{key}], and its settings below",),
        )
    known_keys = [each[0] for each in vocabulary.settings if len(each) == 1] + [each.name for each in manager.plugins]
    known_keys += [
        name[2:].replace("-", "_") for name, word in vocabulary.words.items() if name.startswith("--") and word.alias
    ]
    return Problem(f"there is no setting {key!r}{did_you_mean(key, known_keys)}", said.origin, ("--help lists every setting",))


def _not_its_setting(plugin: Plugin, key: str, origin: str, vocabulary: Vocabulary) -> Problem:
    if plugin.state != "loaded":
        return vocabulary.manager.named(plugin.name, origin)[0]
    fields = vocabulary.fields(plugin.name)
    if not fields:
        return Problem(f"plugin {plugin.name} has no settings", origin, ("drop it",))
    what = f"plugin {plugin.name} has no setting {key!r}{did_you_mean(key, fields)}"
    return Problem(what, origin, (f"its settings: {', '.join(fields)}",))
