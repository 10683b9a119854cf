"""Every setting there is, and every flag or variable that says something about one: the core's and all plugins'."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic_core import PydanticUndefined

from core.compose.defaults import defaults
from core.compose.settings import CORE_ALIASES, KIND_SETTINGS, CoreSettings
from core.errors import Problem
from core.offers import Alias, ForeignWord
from core.plugin_manager import Plugin, PluginManager
from core.suggest import did_you_mean

Key = tuple[str, ...]
"""("max_model_len",) for the core's settings, ("openai_http", "port") for a plugin's."""

ALSO_PLUGIN: Key = ("plugins+",)
"""The key of a feature that is no setting's value: it only adds its plugin."""

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off", ""})
ON_OR_OFF = (_TRUE | _FALSE) - {""}


@dataclass(frozen=True)
class Setting:
    key: Key
    annotation: Any
    default: Any
    description: str

    @property
    def flag(self) -> str:
        return "--" + "-".join(self.key).replace("_", "-")

    @property
    def is_switch(self) -> bool:
        return self.annotation is bool

    @property
    def is_list(self) -> bool:
        return any(_is_class(part, (tuple, list, set, frozenset)) for part in _members(self.annotation))

    @property
    def is_secret(self) -> bool:
        return is_secret(self.annotation)

    def decode(self, text: str) -> Any:
        """A flag's or variable's text as pydantic wants it: lists from commas or JSON, tables from JSON, words in any case."""
        if self.is_list and not text.lstrip().startswith("["):
            parts = [part.strip() for part in text.split(",") if part.strip()]
            return [""] if self.is_secret and not parts else parts  # of an unset shell variable: not the same as none wanted
        members = list(_members(self.annotation))
        if self.is_list or any(_is_class(part, (dict, BaseModel)) for part in members):
            try:
                return json.loads(text)
            except (ValueError, RecursionError):
                return text
        for member in members:
            if get_origin(member) is Literal:
                words = {str(word).casefold(): word for word in get_args(member)}
                return words.get(text.casefold(), text)
        return text


@dataclass(frozen=True)
class Said:
    """One thing said: ``key`` is ``value``; or, refused, that it must not be."""

    key: Key
    value: Any
    origin: str
    refused: bool = False

    @property
    def name(self) -> str:
        return ".".join(self.key)


@dataclass(frozen=True)
class Remark:
    """One thing to tell that refuses nothing."""

    problem: Problem


@dataclass
class Word:
    """A flag ("--port") or a variable ("FD_SAMPLING_CLASS") and what it says.

    It either sets ``setting`` to its value, or to ``constant``; or, where its value is one of ``features``, it chooses that.
    With a value that is ``foreign`` it says nothing, and its user is told why.
    """

    name: str
    summary: str
    plugin: str = ""
    setting: Setting | None = None
    constant: Any = None
    features: dict[str, tuple[Key, Any]] = field(default_factory=dict)
    translates: dict[str, str | None] = field(default_factory=dict)
    foreign: list[ForeignWord] = field(default_factory=list)
    refuses: bool = False
    alias: bool = False

    @property
    def has_meaning(self) -> bool:
        return self.setting is not None or bool(self.features)

    @property
    def takes_value(self) -> bool:
        if not self.has_meaning:
            return not any(foreign.switch for foreign in self.foreign)
        return self.constant is None and self.feature is None

    @property
    def feature(self) -> tuple[Key, Any] | None:
        """What it chooses by merely being given."""
        return self.features.get("")

    def say(self, value: Any, origin: str) -> Said | Problem | Remark | None:
        """``value`` is text from a flag or variable, anything from a file or a call; None for a word that takes none."""
        text = "" if value is None else str(value).casefold()
        for foreign in self.foreign:
            if not foreign.values or any(fnmatchcase(text, each) for each in foreign.values):
                return _told(self.name, foreign, text, origin)
        if text in self.translates:
            value = self.translates[text]
            if value is None:
                return None
        if self.constant is not None and self.setting is not None:
            if value is not None and self.constant is False:
                return Problem(f"{self.name} takes no value", origin, (f"drop {value!r}",))
            return Said(self.setting.key, self.constant if value is None else value, origin)
        if isinstance(value, str) and value and value.casefold() in self.features:
            return Said(*self.features[value.casefold()], origin)
        if self.feature is not None:
            if value is not None and str(value).casefold() in _FALSE:
                return None
            if value is not None and str(value).casefold() not in _TRUE:
                return Problem(f"{self.name} is on or off, not {value!r}", origin, ("give 1 or 0",))
            return Said(*self.feature, origin, self.refuses)
        if self.setting is None:
            known = ", ".join(sorted(self.features))
            return Problem(
                f"{self.name} has no value {value!r}{did_you_mean(str(value), self.features)}", origin, (f"one of: {known}",)
            )
        return Said(self.setting.key, self.setting.decode(value) if isinstance(value, str) else value, origin)


class Vocabulary:
    """``words`` by flag or variable; ``settings`` by key; ``belongs`` tells whose a well-known flag is that nobody brought."""

    def __init__(self, manager: PluginManager) -> None:
        self.manager = manager
        self.words: dict[str, Word] = {}
        self.prefixes: dict[str, Word] = {}  # variables by what they begin with
        self.settings: dict[Key, Setting] = {}
        self._asking: dict[Key, tuple[str, tuple[Key, Any]]] = {}  # table -> the key that says whether, what it chooses
        self.belongs: Mapping[str, str] = defaults()["flags"]
        for setting in _settings_of(CoreSettings, ()):
            self._add_setting(setting, "")
        for alias in CORE_ALIASES:
            self._add_alias(alias, None)
        for plugin in manager.plugins:
            if plugin.state == "loaded":
                self._add_plugin(plugin)
        for plugin in manager.plugins:
            for alias in plugin.aliases:
                mistake = self._add_alias(alias, plugin)
                if mistake:
                    self._forget(plugin.name)
                    manager.break_plugin(plugin.name, mistake)
                    break
        self._add_negations()
        for plugin in manager.plugins:
            for foreign in plugin.foreign_words:
                self._add_foreign(foreign, plugin.name)

    def fields(self, plugin: str) -> tuple[str, ...]:
        return tuple(key[1] for key in self.settings if len(key) == 2 and key[0] == plugin)

    def find(self, name: str) -> Word | None:
        return self.words.get(name)

    def begins(self, variable: str) -> Word | None:
        """The word of all variables that begin like this one; of several, the longest."""
        found = [prefix for prefix in self.prefixes if variable.startswith(prefix)]
        return self.prefixes[max(found, key=len)] if found else None

    def near(self, name: str) -> str:
        """ "; did you mean '--port'?": a word that means something here goes before one that does not."""
        alike = [word for word in self.words.values() if word.name.startswith("-") == name.startswith("-")]
        return did_you_mean(name, [word.name for word in alike if word.has_meaning]) or did_you_mean(
            name, [word.name for word in alike]
        )

    def spelled(self, name: str, value: Any) -> tuple[Word | None, Any]:
        """The word behind a flag's name with underscores, as files and the offline LLM write it: ``enable_x = False``
        is ``--no-enable-x``.
        """
        flag = "--" + name.replace("_", "-")
        word = self.words.get(flag)
        if value is False and (word is None or not word.takes_value):
            negated = self.words.get(f"--no-{flag[2:]}")
            return (negated, None) if negated else (word, value)
        return (word, None) if word is not None and value is True and not word.takes_value else (word, value)

    def chosen_by(self, said: Said) -> Said | None:
        """What a table chooses, or refuses, by being set."""
        asks, feature = self._asking.get(said.key, ("", None))
        if feature is None or not isinstance(said.value, Mapping):
            return None
        return Said(*feature, said.origin, refused=said.value.get(asks) is False)

    def unknown(self, name: str, origin: str) -> Problem:
        """A flag or variable that nobody brought: whose it is if that is known, else the nearest one."""
        origin = "" if origin == name else origin
        owner = self.belongs.get(name)
        if owner is not None:
            plugin = self.manager.get(owner)
            if plugin is None:
                return Problem(f"{name} belongs to the plugin {owner}, which is not installed", origin, (f"install {owner}",))
            return Problem(f"{name} belongs to the plugin {owner}, which is {plugin.state}", origin, _mend(plugin))
        near = self.near(name)
        culprits = [plugin for plugin in self.manager.plugins if plugin.state != "loaded"]
        remedies = ["--help lists every flag"] if name.startswith("-") else []
        if not near and culprits:
            remedies.append(
                "it may belong to a plugin that is not loaded: " + ", ".join(f"{each.name} ({each.state})" for each in culprits)
            )
        if not name.startswith("-"):
            return Problem(f"there is no variable {name}{near}", origin, (f"unset {name}", *remedies))
        return Problem(f"there is no flag {name}{near}", origin, tuple(remedies))

    # --- collecting -------------------------------------------------------------------------------------------------

    def _add_plugin(self, plugin: Plugin) -> None:
        if plugin.name in CoreSettings.model_fields:
            return self.manager.break_plugin(plugin.name, f"its name is a setting of the core: {plugin.name}")
        if plugin.section is None:
            return None
        for setting in _settings_of(plugin.section, (plugin.name,)):
            if setting.flag not in self.words:
                self._add_setting(setting, plugin.name)
            elif mistake := self._claimed_twice(setting.flag, plugin, f"its setting {setting.key[1]}"):
                self._forget(plugin.name)
                return self.manager.break_plugin(plugin.name, mistake)
            else:
                self.settings[setting.key] = setting
        return None

    def _claimed_twice(self, name: str, plugin: Plugin, what: str) -> str:
        """What is wrong with the plugin that claims a word that there is already. Nothing where that is another plugin's: then
        it is a conflict of the two, and neither is broken by the order of their names.
        """
        other = self.manager.get(self.words[name].plugin)
        if other is None or other is plugin:
            return f"{what} would be {name}, which is a flag of {'the core' if other is None else 'its own'} already"
        claims = f"{other.name} of {other.provenance}; {plugin.name} of {plugin.provenance}"
        remedy = f"leave one out: --without {other.name}, or --without {plugin.name}"
        self.manager.add_conflict(Problem(f"two plugins claim {name}: {claims}", "installed distributions", (remedy,)))
        return ""

    def _add_setting(self, setting: Setting, plugin: str) -> None:
        self.settings[setting.key] = setting
        constant = True if setting.is_switch else None
        self.words[setting.flag] = Word(setting.flag, setting.description, plugin, setting, constant)

    def _add_alias(self, alias: Alias, plugin: Plugin | None) -> str:
        """Returns what is wrong with it, or nothing."""
        name = alias.flag.replace("_", "-") if alias.flag else str(alias.env)
        owner = plugin.name if plugin else ""
        if alias.sets is not None:
            setting = self.settings.get((owner, alias.sets)) or self.settings.get((alias.sets,))
            if setting is None:
                return f"its alias {name} sets {alias.sets}, which is no setting"
            if name in self.words and plugin is not None:
                return self._claimed_twice(name, plugin, "its alias")
            constant = True if setting.is_switch and alias.flag else None
            self.words[name] = Word(
                name, alias.summary, owner, setting, constant, translates=dict(alias.translates), alias=True
            )
            if plugin is not None and alias.asks is not None:
                self._asking[setting.key] = alias.asks, _feature(plugin, str(alias.chooses))
            return ""
        assert plugin is not None
        value = "" if alias.value is None or (alias.env and alias.value.casefold() in _TRUE) else alias.value.casefold()
        word = self.words.setdefault(name, Word(name, alias.summary, owner, alias=True))
        feature = _feature(plugin, str(alias.chooses))
        if (value == "" and word.setting is not None) or word.features.get(value, feature) != feature:
            return self._claimed_twice(name, plugin, "its alias")
        word.features[value] = feature
        return ""

    def _add_foreign(self, foreign: ForeignWord, owner: str) -> None:
        if foreign.name.endswith("*"):
            self.prefixes[foreign.name[:-1]] = Word(foreign.name, foreign.reason, owner, foreign=[foreign], alias=True)
            return
        word = self.words.setdefault(foreign.name, Word(foreign.name, foreign.reason, owner, alias=True))
        if foreign.values or not word.has_meaning:
            word.foreign.append(foreign)
        negated = f"--no-{foreign.name[2:]}"
        if foreign.switch and not word.has_meaning and negated not in self.words:
            nothing = ForeignWord(foreign.reason, "none", flag=negated, switch=True)
            self.words[negated] = Word(negated, foreign.reason, owner, foreign=[nothing], alias=True)

    def _add_negations(self) -> None:
        for word in list(self.words.values()):
            negated = f"--no-{word.name[2:]}"
            if word.takes_value or not word.name.startswith("--") or negated in self.words:
                continue
            if word.constant is True:
                self.words[negated] = Word(negated, word.summary, word.plugin, word.setting, False, alias=word.alias)
            elif word.feature is not None and not word.name.startswith("--no-"):
                self.words[negated] = Word(
                    negated, word.summary, word.plugin, features=dict(word.features), refuses=True, alias=True
                )

    def _forget(self, plugin: str) -> None:
        self.words = {name: word for name, word in self.words.items() if word.plugin != plugin}
        self.settings = {key: setting for key, setting in self.settings.items() if key[0] != plugin or len(key) == 1}
        self._asking = {key: asking for key, asking in self._asking.items() if key[0] != plugin}


def _told(name: str, foreign: ForeignWord, value: str, origin: str) -> Problem | Remark | None:
    if foreign.effect == "none" or value in foreign.fine or (foreign.switch and value != "" and value in _FALSE):
        return None
    drop = f"drop {name}" if foreign.flag else f"unset {name}"
    where = "" if origin == name else origin
    shown = name if foreign.switch or not foreign.values else f"{name} {value}"
    match foreign.effect:
        case "warns":
            return Remark(Problem(f"{shown} has no effect here: {foreign.reason}", where))
        case "later":
            return Problem(f"{shown} is not built yet: {foreign.reason}", where, (foreign.remedy or drop,))
        case _:
            return Problem(f"{shown} cannot be had here: {foreign.reason}", where, (foreign.remedy or drop,))


def _feature(plugin: Plugin, offer: str) -> tuple[Key, Any]:
    kinds = [each.kind for each in plugin.offers if each.name == offer]
    for kind in kinds:
        if kind in KIND_SETTINGS:
            return (KIND_SETTINGS[kind],), offer
    return ALSO_PLUGIN, plugin.name


def _mend(plugin: Plugin) -> tuple[str, ...]:
    return (f"its cause: {plugin.error}",) if plugin.state == "broken" else (f"drop {plugin.name} from --without",)


def _settings_of(model: type[BaseModel], prefix: Key) -> Iterator[Setting]:
    for name, info in model.model_fields.items():
        default = info.get_default(call_default_factory=True) if not info.is_required() else PydanticUndefined
        yield Setting((*prefix, name), info.annotation, default, info.description or name.replace("_", " "))


def _members(annotation: Any) -> Iterator[Any]:
    """The alternatives of a type: those of a union, without None; itself otherwise."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            if part is not type(None):
                yield from _members(part)
    else:
        yield annotation


def is_secret(annotation: Any) -> bool:
    """Whether values of this type are never shown."""
    return any(_is_class(inner, (SecretStr,)) for part in _members(annotation) for inner in (part, *get_args(part)))


def is_number(annotation: Any) -> bool:
    """Whether values of this type are numbers, of which no switch is one."""
    members = list(_members(annotation))
    return any(_is_class(part, (int, float)) for part in members) and bool not in members


def _is_class(annotation: Any, classes: tuple[type, ...]) -> bool:
    origin = get_origin(annotation) or annotation
    if origin in (Sequence, Set) and tuple in classes:
        return True
    if origin is Mapping and dict in classes:
        return True
    return isinstance(origin, type) and issubclass(origin, classes)
