"""Which plugins are installed, what each offers, and what is wrong with those that are broken.

With ``core.hookspecs`` the only file that knows pluggy; nothing of pluggy leaves it. Discovery is a loop of our own over the
entry points, because pluggy's stops at the first plugin that does not import and does not know where one came from.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from typing import Any, Literal, get_args, get_type_hints

import pluggy

from core import hookspecs
from core.checked_offers import InvalidOfferError, check, check_kind, described
from core.errors import Problem, UserError
from core.offers import Alias, ForeignWord, Offer, Section
from core.suggest import did_you_mean

GROUP = "dovetail"
State = Literal["loaded", "broken", "blocked"]

_NOT_THE_PLUGINS = ("importlib", "pluggy", "contextlib", "core.compose.calling", __name__)
_PLUGIN_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Offered:
    """An offer, the plugin that hands it over, and where that plugin is installed."""

    offer: Offer
    plugin: str
    provenance: str

    @property
    def name(self) -> str:
        return self.offer.name


@dataclass
class Plugin:
    """An installed plugin. ``provenance`` reads "dovetail-serve 0.1.0 (plain.plugin)"; ``error`` says why a broken one is."""

    name: str
    state: State
    provenance: str
    error: str = ""
    offers: tuple[Offer, ...] = ()

    @property
    def section(self) -> type[Section] | None:
        """The model of the plugin's table, which all its offers that have settings share."""
        return next((offer.settings for offer in self.offers if offer.settings is not None), None)

    @property
    def aliases(self) -> tuple[Alias, ...]:
        return tuple(dict.fromkeys(alias for offer in self.offers for alias in offer.aliases))

    @property
    def foreign_words(self) -> tuple[ForeignWord, ...]:
        return tuple(dict.fromkeys(word for offer in self.offers for word in offer.foreign_words))


class PluginManager:
    """Plugins in the order of their names; whatever depended on the order of installation would be a surprise."""

    def __init__(self, trace: Callable[[str], None] | None = None) -> None:
        self._pluggy = pluggy.PluginManager(hookspecs.PROJECT)
        self._pluggy.add_hookspecs(hookspecs)
        if trace is not None:
            self._trace(trace)
        self._plugins: dict[str, Plugin] = {}
        self._conflicts: list[Problem] = []

    @classmethod
    def discover(
        cls,
        blocked: Sequence[str] = (),
        *,
        entry_points: Iterable[metadata.EntryPoint] | None = None,
        trace: Callable[[str], None] | None = None,
    ) -> PluginManager:
        """Load every installed plugin but the ``blocked`` ones. Nothing raises here: what is wrong is in the plugins' states.

        :param entry_points: instead of what is installed.
        :param trace: is given a line for each hook call.
        """
        return cls(trace)._load(entry_points, set(blocked), None)

    @classmethod
    def load_only(cls, names: Iterable[str], *, entry_points: Iterable[metadata.EntryPoint] | None = None) -> PluginManager:
        """Load these plugins and import no other: what a worker does with the names in its plan.

        :raises UserError: when one is not installed, or broken.
        """
        wanted = tuple(names)
        manager = cls()._load(entry_points, set(), set(wanted))
        problems = [*manager.conflicts, *(problem for name in wanted for problem in manager.named(name, ""))]
        if problems:
            raise UserError(*dict.fromkeys(problems))
        return manager

    # --- questions --------------------------------------------------------------------------------------------------

    @property
    def plugins(self) -> tuple[Plugin, ...]:
        return tuple(self._plugins.values())

    @property
    def conflicts(self) -> tuple[Problem, ...]:
        """Names that two installed plugins claim: an error whoever is chosen, for nobody could tell which is meant."""
        return tuple(self._conflicts)

    def get(self, name: str) -> Plugin | None:
        return self._plugins.get(name) or self._misnamed(name)

    def offers(self, kind: str) -> list[Offered]:
        """Every loaded offer that can be chosen as this kind, by name."""
        found = [
            Offered(offer, plugin.name, plugin.provenance)
            for plugin in self.plugins
            if plugin.state == "loaded"
            for offer in plugin.offers
            if kind in offer.kinds
        ]
        return sorted(found, key=lambda offered: offered.name)

    def named(self, name: str, origin: str) -> list[Problem]:
        """Why a plugin somebody named cannot be used; nothing when it can."""
        plugin = self.get(name)
        if plugin is None:
            return [
                Problem(
                    f"there is no plugin {name!r}{did_you_mean(name, self._plugins)}",
                    origin,
                    ("--list-plugins shows what is installed",),
                )
            ]
        if plugin.state == "broken":
            return [
                Problem(
                    f"plugin {plugin.name} of {plugin.provenance} is broken: {plugin.error}",
                    origin,
                    remedies(plugin.name, plugin.provenance),
                )
            ]
        if plugin.state == "blocked":
            return [Problem(f"plugin {name} is both wanted and left out", origin, (f"drop {name} from --without",))]
        return []

    def _misnamed(self, name: str) -> Plugin | None:
        """A plugin whose own name is none, which nobody can say as it stands: a hyphen is read as an underscore."""
        wrong = (each for each in self.plugins if _PLUGIN_NAME.fullmatch(each.name) is None)
        return next((each for each in wrong if _said(each.name) == _said(name)), None)

    def add_conflict(self, problem: Problem) -> None:
        """What two plugins claim, as only a later step can see."""
        if problem not in self._conflicts:
            self._conflicts.append(problem)

    def break_plugin(self, name: str, error: str) -> None:
        """What only a later step can see is wrong with a plugin: it offers nothing from now on."""
        plugin = self._plugins[name]
        plugin.state, plugin.error, plugin.offers = "broken", error, ()

    # --- loading ----------------------------------------------------------------------------------------------------

    def _load(
        self, entry_points: Iterable[metadata.EntryPoint] | None, blocked: set[str], only: set[str] | None
    ) -> PluginManager:
        found = metadata.entry_points(group=GROUP) if entry_points is None else entry_points
        by_name: dict[str, list[metadata.EntryPoint]] = {}
        for point in sorted(found, key=lambda point: (point.name, _provenance(point))):
            if only is None or point.name in only:
                by_name.setdefault(point.name, []).append(point)
        for name, points in by_name.items():
            provenance = " and ".join(_provenance(point) for point in points)
            left_out = name in blocked or _said(name) in map(_said, blocked)
            self._plugins[name] = Plugin(name, "blocked" if left_out else "loaded", provenance)
            if left_out:
                continue
            if len(points) > 1:
                self._conflict_of_plugins(name, [_provenance(point) for point in points])
            else:
                self._import(points[0])
        self.check_pending()
        for plugin in self.plugins:
            if plugin.state == "loaded":
                self._collect(plugin)
        self._find_conflicts_of_offers()
        return self

    def _import(self, point: metadata.EntryPoint) -> None:
        if _PLUGIN_NAME.fullmatch(point.name) is None:
            return self.break_plugin(point.name, "its name must be lower-case letters, digits and _, for it names a TOML table")
        try:
            module = point.load()
            self._pluggy.register(module, name=point.name)
        except (Exception, SystemExit) as error:
            if self._pluggy.has_plugin(point.name):
                self._pluggy.unregister(name=point.name)
            self.break_plugin(point.name, cause(error))

    def check_pending(self) -> None:
        """A function marked ``@hookimpl`` that is no hook breaks its plugin, and so does a hook that is not marked: a mistake
        must not be a silent nothing.
        """
        for name, module in self._pluggy.list_name_plugin():
            unknown = [caller.name for caller in self._pluggy.get_hookcallers(module) or () if not caller.has_spec()]
            mistakes = [f"{hook} is no hook{did_you_mean(hook, _HOOKS)}" for hook in sorted(unknown)]
            mistakes += [f"{hook} is not marked @hookimpl, so that nobody would call it" for hook in _unmarked(module)]
            if mistakes:
                self._pluggy.unregister(module)
                self.break_plugin(name, "; ".join(mistakes))
        self._pluggy.check_pending()

    def _collect(self, plugin: Plugin) -> None:
        collected: list[Offer] = []
        try:
            for hook, kind in _HOOKS.items():
                collected += self._call(plugin.name, hook, kind)
            check(collected)
        except (Exception, SystemExit) as error:
            self.break_plugin(plugin.name, str(error) if isinstance(error, InvalidOfferError) else cause(error))
        else:
            plugin.offers = tuple(collected)
            if not collected:
                self.break_plugin(plugin.name, _nothing_of(self._pluggy.get_plugin(plugin.name)))

    def _call(self, name: str, hook: str, kind: type[Offer]) -> Iterator[Offer]:
        """One hook of one plugin, so that whatever goes wrong is known to be its."""
        module = self._pluggy.get_plugin(name)
        caller: Any = getattr(self._pluggy.hook, hook)
        implementations = [each for each in caller.get_hookimpls() if each.plugin is module]
        if not implementations:
            return
        if any(each.wrapper or each.hookwrapper for each in implementations):
            raise InvalidOfferError(f"{hook} is a hook wrapper: Dovetail's hooks are not wrapped")
        others = [other for _, other in self._pluggy.list_name_plugin() if other is not module]
        results = self._pluggy.subset_hook_caller(hook, others)()
        if not results:
            raise InvalidOfferError(f"{hook} returned None instead of offers; is a yield missing?")
        if not isinstance(results[0], Iterable):
            raise InvalidOfferError(f"{hook} returned {described(results[0])} instead of offers: yield it")
        for offer in results[0]:
            check_kind(offer, kind, hook)
            yield offer

    def _trace(self, write: Callable[[str], None]) -> None:
        def before(hook: str, implementations: Sequence[Any], arguments: Mapping[str, Any]) -> None:
            write(f"{', '.join(each.plugin_name for each in implementations)}: {hook}()")

        def after(outcome: Any, hook: str, implementations: Sequence[Any], arguments: Mapping[str, Any]) -> None:
            # Hooks may be generators: they run here, so that the trace shows what they give rather than that they would.
            try:
                results = [None if result is None else list(result) for result in outcome.get_result()]
            except Exception as error:
                outcome.force_exception(error)
                write(f"  raised {type(error).__name__}: {error}")
                return
            outcome.force_result(results)
            for offer in (offer for result in results for offer in result or ()):
                write(f"  -> {type(offer).__name__} {getattr(offer, 'name', offer)!r}: {getattr(offer, 'summary', '')}")

        self._pluggy.add_hookcall_monitoring(before, after)

    # --- conflicts --------------------------------------------------------------------------------------------------

    def _conflict_of_plugins(self, name: str, provenances: list[str]) -> None:
        self.break_plugin(name, f"{len(provenances)} distributions claim the name")
        self._conflicts.append(
            Problem(
                f"{len(provenances)} plugins are called {name!r}: {'; '.join(provenances)}",
                "installed distributions",
                ("uninstall one of them", f"leave both out: --without {name}"),
            )
        )

    def _find_conflicts_of_offers(self) -> None:
        claimed: dict[tuple[str, str], Plugin] = {}
        for plugin in self.plugins:
            for offer in plugin.offers:
                other = claimed.setdefault((offer.kind, offer.name), plugin)
                if other is not plugin:
                    self._conflicts.append(
                        Problem(
                            f"two plugins offer a {offer.kind.replace('_', ' ')} {offer.name!r}: "
                            f"{other.name} of {other.provenance}; {plugin.name} of {plugin.provenance}",
                            "installed distributions",
                            (f"leave one out: --without {other.name}, or --without {plugin.name}",),
                        )
                    )


def _offer_types() -> dict[str, type[Offer]]:
    """Hook name -> type of its offers, read from the specs' annotations."""
    hooks = [name for name in vars(hookspecs) if name.startswith("register_")]
    return {hook: get_args(get_type_hints(getattr(hookspecs, hook))["return"])[0] for hook in hooks}


_HOOKS = _offer_types()


def _said(name: str) -> str:
    return name.replace("-", "_").casefold()


def _unmarked(module: Any) -> list[str]:
    """Functions with a hook's name that are no implementations of it; a hook's own specification may have been imported."""
    found = ((hook, getattr(module, hook, None)) for hook in _HOOKS)
    marks = f"{hookspecs.PROJECT}_impl", f"{hookspecs.PROJECT}_spec"
    return [hook for hook, each in found if callable(each) and not any(hasattr(each, mark) for mark in marks)]


def _nothing_of(module: Any) -> str:
    hooks = [hook for hook in _HOOKS if hasattr(getattr(module, hook, None), f"{hookspecs.PROJECT}_impl")]
    if hooks:
        return f"it offers nothing: {' and '.join(hooks)} gave no offer"
    return "it offers nothing: its module has no function that is marked @hookimpl"


def _provenance(point: metadata.EntryPoint) -> str:
    return f"{_owner(getattr(point, 'dist', None))} ({point.value})"


@lru_cache
def _owner(distribution: metadata.Distribution | None) -> str:
    """Kept, since a distribution parses all that it says of itself each time it is asked."""
    return f"{distribution.name} {distribution.version}" if distribution is not None else "no distribution"


def remedies(plugin: str, provenance: str) -> tuple[str, ...]:
    """What can be done about a plugin that does not do what it should."""
    return f"mend or reinstall {provenance.split(' ')[0]}", f"leave the plugin out: --without {plugin}"


def cause(error: BaseException, package: str = "") -> str:
    """The error in one line, with the place in the plugin where it arose: the last in its ``package``, if any is there."""
    text = " ".join(str(error).split())
    line = f"{type(error).__name__}: {text}" if text else type(error).__name__
    places = [
        (str(frame.f_globals.get("__name__", "")), number)
        for frame, number in traceback.walk_tb(error.__traceback__)
        if not str(frame.f_globals.get("__name__", "")).startswith(_NOT_THE_PLUGINS)
    ]
    own = [place for place in places if place[0].partition(".")[0] == package]
    if not places:
        return line
    module, number = (own or places)[-1]
    return f"{line} ({module}, line {number})"
