"""The steps of a composition: read, choose, probe, find the model, resolve, judge. What is wrong is collected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from core.compose.automatic import prefer_splitting, ranks_of, resolve_machine, resolve_sizes
from core.compose.choose import Selection, select
from core.compose.configuration import Configuration, read
from core.compose.facts import Facts
from core.compose.find_model import Found, find_model
from core.compose.first_pass import FirstPass
from core.compose.gather import origins_of
from core.compose.head import select_head, settle_head
from core.compose.judgement import judged
from core.compose.packed import take_packing
from core.compose.parsers import recognize_parsers
from core.compose.plan import Choice, Plan, by_origin
from core.compose.probe import DeviceProbe, probe_devices
from core.compose.rules import Violation
from core.compose.settings import KIND_SETTINGS
from core.errors import Problem, UserError
from core.models.sources import is_here
from core.offers import CheckpointFormatOffer, ModelOffer, Offer, RulesOffer
from core.plugin_manager import Offered, PluginManager


@dataclass
class Composition:
    """An attempt: ``plan`` is None exactly when there are ``problems``; ``violations`` are those among them that are rules'."""

    selection: Selection
    facts: Facts
    problems: list[Problem]
    plan: Plan | None = None
    violations: list[Violation] = field(default_factory=list)


def attempt(
    first: FirstPass,
    manager: PluginManager,
    probe: DeviceProbe | None = None,
    known: Plan | None = None,
    selected: Callable[[Selection], None] | None = None,
) -> Composition:
    """Go as far as what was said allows, and report everything that is wrong with it.

    :param known: a plan of the same model, which then need not be looked for and read.
    :param selected: is given what has been chosen before the machine and the model are looked at, which takes longer.
    """
    configuration = read(first, manager)
    selection = select(configuration)
    if selected is not None:
        selected(selection)
    try:
        select_head(configuration, selection)
    except UserError as error:
        selection.problems += error.problems
    problems = [*configuration.problems, *selection.problems]
    if not configuration.settings:
        return Composition(selection, Facts({}), problems)
    try:
        probe = probe or probe_devices(first.env)
        resolved = resolve_machine(configuration, probe, ranks_of(configuration, selection), selection)
    except UserError as error:
        return Composition(selection, Facts({}), [*problems, *error.problems])
    prefer_splitting(resolved, configuration, selection)

    judgement = judged(configuration, selection, resolved, probe, None)
    found: Found | None = None
    overruled: list[Problem] = []
    refused = bool(problems) or judgement.refuses
    here = known is not None or is_here(resolved.settings["model"])
    if not refused or here:  # what is refused anyway is not worth a download
        try:
            found = find_model(configuration, selection, resolved, known)
            if found.packing is not None:
                overruled = take_packing(found.packing, found.folder.name, configuration, selection)
            settle_head(configuration, selection, found.packing is not None and found.packing.of_layers)
            overruled += recognize_parsers(configuration, selection, resolved, found)
        except UserError as error:
            problems += [by_origin(problem, origins_of(configuration, selection, resolved)) for problem in error.problems]
    if found is not None:
        try:
            resolve_sizes(resolved, configuration, selection, found.spec, probe)
            judgement = judged(configuration, selection, resolved, probe, found)
        except UserError as error:
            problems, found = [*problems, *error.problems], None
    sections, more = _sections(configuration, selection, manager)
    violations = judgement.violations
    problems += [*judgement.mistakes, *more, *(each.problem() for each in violations if each.rule.severity == "error")]
    composition = Composition(selection, judgement.facts, list(dict.fromkeys(problems)), None, violations)
    if not composition.problems and found is not None:
        warnings = [_broken(plugin) for plugin in manager.plugins if plugin.state == "broken"]
        warnings += [_idle(name, configuration) for name in selection.named if not _is_used(name, selection, found, manager)]
        warnings += overruled
        warnings += [*configuration.remarks, *(each.problem() for each in violations if each.rule.severity == "warning")]
        composition.plan = Plan(
            settings=resolved.settings,
            sections=sections,
            origins=origins_of(configuration, selection, resolved),
            choices=_choices(selection, found),
            facts=dict(judgement.facts),
            model=found.folder,
            spec=found.spec,
            config=found.config,
            reasons=resolved.reasons,
            warnings=tuple(warnings),
            packing=found.packing,
            machine=probe,
            template=found.template,
        )
    return composition


# --- what the plan is made of -------------------------------------------------------------------------------------------


def _sections(
    configuration: Configuration, selection: Selection, manager: PluginManager
) -> tuple[dict[str, dict[str, Any]], list[Problem]]:
    """The tables of the plugins in the composition; those of others are only checked."""
    sections: dict[str, dict[str, Any]] = {}
    problems: list[Problem] = []
    for plugin in manager.plugins:
        if plugin.section is not None and plugin.state == "loaded":
            chosen = plugin.name in selection.plugins
            if chosen or configuration.table(plugin.name):
                values, mistakes = configuration.section(plugin.name)
                problems += mistakes
                if chosen:
                    sections[plugin.name] = values
    return sections, problems


def _choices(selection: Selection, found: Found) -> tuple[Choice, ...]:
    def of(kind: str, offered: Offered, default: str) -> Choice:
        origin = selection.origins.get(offered.plugin, default)
        return Choice(kind, offered.name, offered.plugin, offered.provenance, origin)

    singles = [choice for kind in KIND_SETTINGS if (choice := selection.choice(kind)) is not None]
    many = [of("model", found.family, "default"), of("checkpoint_format", found.format, "default")]
    return (*singles, *many, *(of("rules", offered, "default") for offered in selection.rules))


def _is_used(plugin: str, selection: Selection, found: Found, manager: PluginManager) -> bool:
    if any(offered.plugin == plugin for offered in (*selection.offers.values(), *selection.rules)):
        return True
    installed = manager.get(plugin)
    return installed is None or any(_many(offer) for offer in installed.offers) or not installed.offers


def _many(offer: Offer) -> bool:
    return isinstance(offer, (ModelOffer, CheckpointFormatOffer, RulesOffer))


def _idle(plugin: str, configuration: Configuration) -> Problem:
    return Problem(
        f"nothing of plugin {plugin} is used: other offers were chosen by name",
        configuration.origin("plugins"),
        (f"drop {plugin}",),
    )


def _broken(plugin: Any) -> Problem:
    return Problem(f"plugin {plugin.name} of {plugin.provenance} is broken and left out: {plugin.error}")
