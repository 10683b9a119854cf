"""What was said, merged: flags over environment over TOML over defaults, each value with its origin, all mistakes at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from reprlib import Repr
from typing import Any

from pydantic import BaseModel, ValidationError

from core.compose.first_pass import FirstPass, plugin_names
from core.compose.readers import LEVELS, unknown_key
from core.compose.settings import CoreSettings
from core.compose.vocabulary import ALSO_PLUGIN, Key, Remark, Said, Vocabulary, is_number, is_secret
from core.errors import Problem, UserError
from core.plugin_manager import PluginManager
from core.suggest import did_you_mean

LISTS = ("plugins", "without")
LONGEST_SHOWN = 200  # characters of a value that a message repeats

WORDED = {
    "tuple_type": "input should be a list",
    "list_type": "input should be a list",
    "dict_type": "input should be a table; a flag or a variable gives one as JSON",
    "model_type": "input should be a table; a flag or a variable gives one as JSON",
}
"""What pydantic says in words of Python, by the kind of mistake."""


@dataclass
class Configuration:
    """The core's settings, validated; each plugin's as given, since who is chosen is not known yet."""

    settings: dict[str, Any]
    given: dict[Key, Said]
    refused: list[Said]
    problems: list[Problem]
    vocabulary: Vocabulary
    features: dict[str, str] = field(default_factory=dict)  # plugin that a flag asked for beside --plugins -> that flag
    remarks: list[Problem] = field(default_factory=list)  # what was said and has no effect
    levels: dict[str, int] = field(default_factory=dict)  # origin -> how high it stands: what is higher goes before

    @property
    def manager(self) -> PluginManager:
        return self.vocabulary.manager

    def origin(self, *key: str) -> str:
        said = self.given.get(key)
        return said.origin if said else "default"

    def outranks(self, one: str, other: str) -> bool:
        """Whether what was said at one origin goes before what was said at the other."""
        return self.levels[one] > self.levels[other]

    def table(self, plugin: str) -> dict[str, Said]:
        return {key[1]: said for key, said in self.given.items() if len(key) == 2 and key[0] == plugin}

    @property
    def tables(self) -> tuple[str, ...]:
        """Plugins that are given settings, those tables left out that say that their plugin is not wanted."""
        wanted = (key for key, said in self.given.items() if len(key) == 2 and not self._says_no(said))
        return tuple(dict.fromkeys(key[0] for key in wanted))

    def _says_no(self, said: Said) -> bool:
        chosen = self.vocabulary.chosen_by(said)
        return chosen is not None and chosen.refused

    def section(self, plugin: str) -> tuple[dict[str, Any], list[Problem]]:
        """A plugin's settings, validated, and what is wrong with them."""
        found = self.manager.get(plugin)
        model = found.section if found else None
        if model is None:
            return {}, []
        values, problems = validated(model, self.table(plugin), f"{plugin}.")
        return values, problems


def read(first: FirstPass, manager: PluginManager) -> Configuration:
    """Everything that was said, merged and, for the core's settings, validated. Nothing raises: see ``problems``."""
    vocabulary = Vocabulary(manager)
    problems = list(manager.conflicts)
    given: dict[Key, Said] = {}
    refused: list[Said] = []
    features: dict[str, str] = {}
    remarks: list[Problem] = []
    levels: dict[str, int] = {}
    for height, level in enumerate(LEVELS):
        said: dict[Key, Said] = {}
        for each in _with_what_tables_choose(level(first, vocabulary), vocabulary):
            if isinstance(each, Problem):
                problems.append(each)
            elif isinstance(each, Remark):
                remarks.append(each.problem)
            elif each.key == ALSO_PLUGIN:
                if each.refused:
                    refused.append(each)
                else:
                    features[each.value] = each.origin
            elif each.refused:
                refused.append(each)
                if each.key in given and given[each.key].value == each.value:
                    del given[each.key]
            else:
                other = said.setdefault(each.key, each)
                levels[each.origin] = height
                if other.value != each.value and other.origin == each.origin:
                    remarks.append(_repeated(other, each, vocabulary))
                    said[each.key] = each
                elif other.value != each.value:
                    problems.append(_contradiction(other, each, vocabulary))
        overruled = [vocabulary.chosen_by(given[key]) for key in said if key in given]
        refused = [no for no in refused if no not in overruled]
        given.update(said)
        clashes = [no for no in refused if no.key in said and said[no.key].value == no.value]
        problems += [_contradiction(said[no.key], no, vocabulary) for no in clashes]
    for name in LISTS:
        if (name,) in given:
            said_list = given[(name,)]
            given[(name,)] = Said((name,), plugin_names(said_list.value), said_list.origin)
    strangers = [said for key, said in given.items() if key not in vocabulary.settings]
    for said_of_stranger in strangers:
        problems.append(unknown_key(said_of_stranger, vocabulary))
        del given[said_of_stranger.key]
    core = {key[0]: said for key, said in given.items() if len(key) == 1}
    settings, mistakes = validated(CoreSettings, core)
    problems += mistakes
    return Configuration(settings, given, refused, problems, vocabulary, features, list(dict.fromkeys(remarks)), levels)


def _with_what_tables_choose(
    said: Iterable[Said | Problem | Remark], vocabulary: Vocabulary
) -> Iterator[Said | Problem | Remark]:
    for each in said:
        yield each
        chosen = vocabulary.chosen_by(each) if isinstance(each, Said) else None
        if chosen is not None:
            yield chosen


def validated(model: type[BaseModel], said: Mapping[str, Said], prefix: str = "") -> tuple[dict[str, Any], list[Problem]]:
    """The model's fields by name, and a problem for each value it does not take; those fields keep their defaults."""
    values = {name: each.value for name, each in said.items()}
    problems: list[Problem] = []
    for name, each in said.items():
        if isinstance(each.value, bool) and is_number(model.model_fields[name].annotation):
            problems.append(Problem(f"{prefix}{name} = {each.value}: input should be a number", each.origin))
            del values[name]
    secret = {name for name, info in model.model_fields.items() if is_secret(info.annotation)}
    while True:
        try:
            instance = model.model_validate(values)
        except ValidationError as error:
            wrong = {str(detail["loc"][0]) for detail in error.errors() if detail["loc"]} & set(values)
            problems += [_mistake(detail, said, prefix, secret) for detail in error.errors()]
            if not wrong:  # the values disagree with each other, or the model with its own defaults
                return {}, problems
            values = {name: value for name, value in values.items() if name not in wrong}
        else:
            return {name: getattr(instance, name) for name in model.model_fields}, problems


def _mistake(detail: Any, said: Mapping[str, Said], prefix: str, secret: Set[str]) -> Problem:
    path = [str(part) for part in detail["loc"]]
    text = WORDED.get(detail["type"]) or str(detail["msg"])
    if detail["type"] == "value_error":
        text = str(detail.get("ctx", {}).get("error", text))
    text = text[:1].lower() + text[1:]
    if not path:
        return Problem(
            f"{prefix.rstrip('.') or 'the settings'}: {text}", ", ".join(dict.fromkeys(each.origin for each in said.values()))
        )
    origin = said[path[0]].origin if path[0] in said else "default"
    near = ""
    if detail["type"] == "literal_error":
        expected = detail["ctx"]["expected"].replace(" or ", ", ").split(", ")
        near = did_you_mean(str(detail["input"]), [word.strip("'") for word in expected])
    shown = "***" if path[0] in secret else _shown(detail["input"])
    return Problem(f"{prefix}{path[0]} = {shown}: {text}{near}", origin)


def _shown(value: Any) -> str:
    """What a message repeats of a value: also of one that a file of few lines makes larger than memory (YAML's aliases)."""
    if not isinstance(value, str | list | tuple | dict):
        return str(value)
    shortened = Repr()
    shortened.maxlevel, shortened.maxstring = 3, LONGEST_SHOWN
    return shortened.repr(value)


def _shown_of(said: Said, vocabulary: Vocabulary) -> str:
    setting = vocabulary.settings.get(said.key)
    return "***" if setting is not None and setting.is_secret else _shown(said.value)


def _repeated(first: Said, last: Said, vocabulary: Vocabulary) -> Problem:
    taken, dropped = _shown_of(last, vocabulary), _shown_of(first, vocabulary)
    return Problem(
        f"{last.origin} is given twice: {taken}, which comes last, is taken, and not {dropped}", "", ("keep one of them",)
    )


def _contradiction(one: Said, other: Said, vocabulary: Vocabulary) -> Problem:
    shown = _shown_of(other, vocabulary)
    return Problem(
        f"{one.name} is said to be {_shown_of(one, vocabulary)} and {'not ' if other.refused else ''}{shown}",
        f"{one.origin}, {other.origin}",
        (f"drop {one.origin} or {other.origin}",),
    )


def refuse_with(problems: Sequence[Problem]) -> None:
    if problems:
        raise UserError(*dict.fromkeys(problems))
