"""Choosing one offer a kind: by its name, by naming its plugin, or by default, and never by order of installation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from core.compose.configuration import Configuration
from core.compose.defaults import defaults
from core.compose.plan import Choice
from core.compose.settings import KIND_SETTINGS
from core.errors import Problem
from core.offers import HEAD_QUANTIZER, MANY_KINDS, OPTIONAL_KINDS, SINGLE_KINDS, RulesOffer, SchedulerOffer
from core.plugin_manager import Offered, PluginManager
from core.suggest import did_you_mean


@dataclass
class Selection:
    """Who was chosen. ``offers`` has one offer for each single kind that was decided; ``candidates`` those whose plugins were
    named, where the kind's own setting does not say which.
    """

    named: tuple[str, ...]  # plugins the configuration names, each once
    repeated: tuple[str, ...]
    candidates: dict[str, tuple[str, ...]] = field(default_factory=dict)
    offers: dict[str, Offered] = field(default_factory=dict)
    rules: list[Offered] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)  # kind -> why, or plugin -> why
    model_plugins: tuple[str, ...] = ()
    format_plugins: tuple[str, ...] = ()
    problems: list[Problem] = field(default_factory=list)

    @property
    def plugins(self) -> tuple[str, ...]:
        """Every plugin that is in the composition: named, or with an offer in use."""
        used = [offered.plugin for offered in (*self.offers.values(), *self.rules)]
        return tuple(sorted({*self.named, *used, *self.model_plugins, *self.format_plugins}))

    def offer(self, kind: str) -> Any:
        found = self.offers.get(kind)
        return found.offer if found else None

    def take(self, kind: str, offered: Offered, origin: str) -> None:
        self.offers[kind], self.origins[kind] = offered, origin

    def choice(self, kind: str) -> Choice | None:
        found = self.offers.get(kind)
        return Choice(kind, found.name, found.plugin, found.provenance, self.origins[kind]) if found else None


def select(configuration: Configuration) -> Selection:
    """Everything that can be chosen before the model is known. Problems are collected, the rest goes on."""
    manager = configuration.manager
    origin = configuration.origin("plugins")
    said = list(configuration.settings.get("plugins", ()))
    named = dict.fromkeys(said)
    selection = Selection(tuple(named), tuple(name for name in named if said.count(name) > 1))
    for name in named:
        selection.problems += manager.named(name, origin)
        selection.origins[name] = origin
    for name in dict.fromkeys(configuration.settings.get("without", ())):
        if manager.get(name) is None:
            near = did_you_mean(name, (each.name for each in manager.plugins))
            remedies = ("--list-plugins shows what is installed",)
            selection.problems.append(Problem(f"there is no plugin {name!r}{near}", configuration.origin("without"), remedies))
    for name, flag in configuration.features.items():
        if name not in named:
            selection.named += (name,)
            selection.origins[name] = flag
    for kind in (*SINGLE_KINDS, *OPTIONAL_KINDS):
        if kind != HEAD_QUANTIZER:  # which hangs on the quantizer that is chosen here
            _select_one(kind, configuration, selection)
    selection.problems += _chosen_against(configuration, selection)
    always = defaults()["always"]
    used = {offered.plugin for offered in selection.offers.values()}
    for kind in MANY_KINDS:
        for offered in manager.offers(kind):
            wanted = offered.plugin in {*selection.named, *used, *always.get(kind, ())}
            if wanted and isinstance(offered.offer, RulesOffer):
                selection.rules.append(offered)
    selection.model_plugins = _plugins_of("model", manager, selection, always)
    selection.format_plugins = _plugins_of("checkpoint_format", manager, selection, always)
    return selection


def _chosen_against(configuration: Configuration, selection: Selection) -> Iterator[Problem]:
    """Plugins that are named, while for all they offer others are named: at the same place, or where less is said."""
    manager = configuration.manager
    named_at = configuration.origin("plugins")
    for name in dict.fromkeys(configuration.settings.get("plugins", ())):
        plugin = manager.get(name)
        kinds = dict.fromkeys(offer.kind for offer in plugin.offers) if plugin is not None else {}
        others = {kind: offered for kind in kinds if (offered := selection.offers.get(kind)) and kind in KIND_SETTINGS}
        by_name = {kind: configuration.given.get((KIND_SETTINGS[kind],)) for kind in others}
        places = [said.origin for said in by_name.values() if said and not configuration.outranks(said.origin, named_at)]
        if not kinds or len(places) < len(kinds) or any(each.plugin in selection.named for each in others.values()):
            continue
        chosen = ", ".join(f"the {kind.replace('_', ' ')} {offered.name}" for kind, offered in others.items())
        yield Problem(
            f"plugin {name} is named, and nothing of it can be used beside {chosen}",
            ", ".join([named_at, *dict.fromkeys(places)]),
            (f"drop {name}", f"drop {' and '.join(dict.fromkeys(places))}"),
        )


def _plugins_of(kind: str, manager: PluginManager, selection: Selection, always: dict[str, list[str]]) -> tuple[str, ...]:
    wanted = {*selection.named, *always.get(kind, ())}
    return tuple(dict.fromkeys(offered.plugin for offered in manager.offers(kind) if offered.plugin in wanted))


def _select_one(kind: str, configuration: Configuration, selection: Selection) -> None:
    manager = configuration.manager
    setting = KIND_SETTINGS[kind]
    asked = configuration.settings.get(setting, "auto")
    if asked == "none" and kind in OPTIONAL_KINDS:
        selection.origins[kind] = configuration.origin(setting)
        return
    offers = {offered.name: offered for offered in manager.offers(kind)}
    if asked != "auto":
        if asked in offers:
            selection.take(kind, offers[asked], configuration.origin(setting))
        else:
            selection.problems.append(no_offer(kind, asked, list(offers.values()), configuration))
        return
    refused = {no.value: no.origin for no in configuration.refused if no.key == (setting,)}
    candidates = [offered for name, offered in offers.items() if offered.plugin in selection.named and name not in refused]
    candidates = _defaults_among(kind, candidates)
    candidates.sort(key=lambda offered: selection.named.index(offered.plugin))
    selection.candidates[kind] = tuple(offered.name for offered in candidates)
    if candidates:
        selection.take(kind, candidates[0], selection.origins[candidates[0].plugin])
    elif kind in SINGLE_KINDS or _has_default(kind, manager):
        _select_default(kind, offers, configuration, selection)
        if kind in OPTIONAL_KINDS and kind in selection.offers and selection.offers[kind].name in refused:
            selection.origins[kind] = refused[selection.offers.pop(kind).name]


def _defaults_among(kind: str, candidates: list[Offered]) -> list[Offered]:
    """A plugin that offers several of a kind, one of them the default, offers that one where it is merely named."""
    plugin, _, name = str(defaults()["kinds"].get(kind, "")).partition(":")
    return [each for each in candidates if not name or each.plugin != plugin or each.name == name]


def _has_default(kind: str, manager: PluginManager) -> bool:
    """Of an optional kind: nothing is chosen, and nothing is wrong, where the plugin is not there."""
    plugin = manager.get(str(defaults()["kinds"].get(kind, "")).partition(":")[0])
    return plugin is not None and plugin.state == "loaded"


def _select_default(kind: str, offers: dict[str, Offered], configuration: Configuration, selection: Selection) -> None:
    manager = configuration.manager
    plugin, _, name = str(defaults()["kinds"][kind]).partition(":")
    found = [offered for offered in offers.values() if offered.plugin == plugin and (not name or offered.name == name)]
    if len(found) == 1:
        return selection.take(kind, found[0], "default")
    flag = f"--{KIND_SETTINGS[kind].replace('_', '-')}"
    remedies = tuple(f"{flag} {offered.name} (plugin {offered.plugin})" for offered in offers.values())
    installed = manager.get(plugin)
    title = kind.replace("_", " ")
    where = "default"
    if installed is None:
        why = f"its default, the plugin {plugin}, is not installed"
        remedies += (f"install {plugin}",)
    elif installed.state == "broken":
        why = f"its default, the plugin {plugin} of {installed.provenance}, is broken: {installed.error}"
    elif installed.state == "blocked":
        why = f"its default, the plugin {plugin}, is left out"
        where = configuration.origin("without")
        remedies += (f"drop {plugin} from {where}",)
    else:
        why = f"the plugin {plugin}, its default, offers {', '.join(offered.name for offered in found) or 'none'}"
    selection.problems.append(Problem(f"nothing fills the kind {title}: {why}", where, remedies))
    return None


def no_offer(kind: str, asked: str, offers: list[Offered], configuration: Configuration) -> Problem:
    manager = configuration.manager
    setting = KIND_SETTINGS[kind]
    words = configuration.vocabulary.words.get(f"--{setting.replace('_', '-')}")
    names = [offered.name for offered in offers] + list(words.features if words else ())
    known = f"one of: {', '.join(names)}" if names else f"install a plugin that offers a {kind.replace('_', ' ')}"
    remedies = [known]
    remedies += [
        f"{plugin.name} might offer it, but is {plugin.state}{': ' + plugin.error if plugin.error else ''}"
        for plugin in manager.plugins
        if plugin.state != "loaded"
    ]
    return Problem(
        f"no installed plugin offers the {kind.replace('_', ' ')} {asked!r}{did_you_mean(asked, names)}",
        configuration.origin(setting),
        tuple(remedies),
    )


def splitting_schedulers(manager: PluginManager) -> list[Offered]:
    return [
        offered
        for offered in manager.offers(SchedulerOffer.kind)
        if isinstance(offered.offer, SchedulerOffer) and offered.offer.splits_prompts
    ]
