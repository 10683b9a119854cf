"""What is to be said of a composition as far as it is known: its facts, the rules it violates, and mistakes of plugins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from core.compose.automatic import Resolved
from core.compose.choose import Selection, splitting_schedulers
from core.compose.configuration import Configuration
from core.compose.facts import Facts
from core.compose.find_model import Found
from core.compose.gather import gather_facts, gather_rules, idle_rules
from core.compose.probe import DeviceProbe
from core.compose.rules import Violation, judge
from core.compose.settings import KIND_SETTINGS
from core.errors import Problem
from core.offers import OPTIONAL_KINDS

UNLOADED = "section-of-an-unloaded-plugin"


@dataclass(frozen=True)
class Judgement:
    """``mistakes`` are those of plugins: rules nobody can judge, facts that cannot be computed."""

    facts: Facts
    violations: list[Violation]
    mistakes: list[Problem]

    @property
    def refuses(self) -> bool:
        return bool(self.mistakes) or any(each.rule.severity == "error" for each in self.violations)


def judged(
    configuration: Configuration, selection: Selection, resolved: Resolved, probe: DeviceProbe, found: Found | None
) -> Judgement:
    """Asked twice: before the model is looked for, with what is known without it (``found`` is None), and after."""
    name_choices(selection, resolved.settings)
    facts, mistakes = gather_facts(configuration, selection, resolved, probe, found)
    rules, more = gather_rules(selection, found, facts)
    of_unloaded = _of_unloaded_plugins(configuration, selection, facts, found)
    violations = [violation for theirs in of_unloaded.values() for violation in theirs or ()]
    explained = {plugin for plugin, theirs in of_unloaded.items() if theirs is None or theirs}
    all_explained = explained.issuperset(facts["sections.unloaded"])
    violations += [each for each in judge(facts, rules) if not (each.id == UNLOADED and all_explained)]
    return Judgement(facts, violations, [*mistakes, *more])


def _of_unloaded_plugins(
    configuration: Configuration, selection: Selection, facts: Facts, found: Found | None
) -> dict[str, list[Violation] | None]:
    """What plugins that are not chosen say of settings given to them; None for one that may still be chosen by itself."""
    manager = configuration.manager
    undecided: set[str] = set()
    if found is None and selection.origins.get("scheduler") == "default":
        undecided = {each.plugin for each in splitting_schedulers(manager)}
    told: dict[str, list[Violation] | None] = dict.fromkeys(undecided)
    for plugin, rules in idle_rules(manager, facts["sections.unloaded"]).items():
        if plugin not in undecided:
            told[plugin] = judge(facts, rules)
    return told


def name_choices(selection: Selection, settings: dict[str, Any]) -> None:
    """Where a setting said "auto", it now says what was chosen."""
    for kind, setting in KIND_SETTINGS.items():
        if kind in selection.offers:
            settings[setting] = selection.offers[kind].name
        elif kind in OPTIONAL_KINDS:
            settings[setting] = "none"
