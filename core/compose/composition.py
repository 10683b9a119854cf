"""The steps of a composition: read, choose, probe, find the model, resolve, judge. What is wrong is collected."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from core.compose.automatic import SHORTEST, Resolved, budget_bytes, fitting_length, resolve_machine, resolve_sizes
from core.compose.choose import Selection, select, splitting_schedulers
from core.compose.core_rules import CORE_RULES
from core.compose.facts import CORE_FACTS, Facts, device_facts, model_facts, settings_facts
from core.compose.plan import Choice, Plan
from core.compose.probe import DeviceProbe, probe_devices
from core.compose.rules import Violation, judge, undeclared
from core.compose.settings import KIND_SETTINGS
from core.compose.sources import Configuration, FirstPass, read
from core.errors import Problem, UserError
from core.interfaces.model import DecoderSpec, ModelFolder
from core.interfaces.rules import Fact, Rule
from core.offers import OPTIONAL_KINDS, CheckpointFormatOffer, ModelOffer, Offer, RulesOffer
from core.plugin_manager import Offered, PluginManager
from core.suggest import did_you_mean


@dataclass
class Found:
    """The model, before any weight is read."""

    folder: ModelFolder
    config: Mapping[str, Any]
    architecture: str
    spec: DecoderSpec
    family: Offered
    format: Offered


@dataclass
class Composition:
    """An attempt: ``plan`` is None exactly when there are ``problems``; ``violations`` are those among them that are rules'."""

    selection: Selection
    facts: Facts
    problems: list[Problem]
    plan: Plan | None = None
    violations: list[Violation] = field(default_factory=list)
    rules: tuple[Rule, ...] = ()


def attempt(first: FirstPass, manager: PluginManager, probe: DeviceProbe | None = None) -> Composition:
    """Go as far as what was said allows, and report everything that is wrong with it."""
    configuration = read(first, manager)
    selection = select(configuration)
    problems = [*configuration.problems, *selection.problems]
    if not configuration.settings:
        return Composition(selection, Facts({}), problems)
    try:
        probe = probe or probe_devices(first.env)
    except UserError as error:
        return Composition(selection, Facts({}), [*problems, *error.problems])
    resolved = resolve_machine(configuration, probe)

    def state(found: Found | None) -> tuple[Facts, list[Violation], list[Problem]]:
        _name_choices(selection, resolved.settings)
        facts, mistakes = _facts(configuration, selection, resolved, probe, found)
        rules, more = _rules(selection, found, facts)
        return facts, judge(facts, rules), [*mistakes, *more]

    facts, violations, mistakes = state(None)
    found: Found | None = None
    wrong = bool(problems) or bool(mistakes) or any(each.rule.severity == "error" for each in violations)
    if not wrong or _is_here(resolved.settings["model"]):  # what is refused anyway is not worth a download
        try:
            found = find_model(configuration, selection, resolved)
        except UserError as error:
            problems += [_by_origin(problem, configuration) for problem in error.problems]
    if found is not None:
        resolve_sizes(resolved, configuration, selection, found.spec, probe)
        facts, violations, mistakes = state(found)
    undecided = found is None and selection.origins.get("scheduler") == "default"
    sections, more = _sections(configuration, selection, manager)
    if undecided:  # a scheduler that splits prompts might still be chosen; its table is not out of place yet
        splitting = {each.plugin for each in splitting_schedulers(manager)}
        violations = [
            each
            for each in violations
            if each.id != "section-of-an-unloaded-plugin" or not splitting.issuperset(facts["sections.unloaded"])
        ]
    problems += [*mistakes, *more, *(each.problem() for each in violations if each.rule.severity == "error")]
    composition = Composition(selection, facts, list(dict.fromkeys(problems)), None, violations)
    if not composition.problems and found is not None:
        warnings = [_broken(plugin) for plugin in manager.plugins if plugin.state == "broken"]
        warnings += [_idle(name, configuration) for name in selection.named if not _is_used(name, selection, found, manager)]
        warnings += [each.problem() for each in violations if each.rule.severity == "warning"]
        composition.plan = Plan(
            settings=resolved.settings,
            sections=sections,
            origins=_origins(configuration, selection, resolved),
            choices=_choices(selection, found),
            facts=dict(facts),
            model=found.folder,
            spec=found.spec,
            config=found.config,
            reasons=resolved.reasons,
            warnings=tuple(warnings),
        )
    return composition


# --- the model ----------------------------------------------------------------------------------------------------------


def find_model(configuration: Configuration, selection: Selection, resolved: Resolved) -> Found:
    """:raises UserError: when there is no such model, or nobody chosen can run it."""
    from core.models.loading import read_config
    from core.models.sources import resolve

    manager = configuration.vocabulary.manager
    offered_formats = {
        each.name: each for each in manager.offers(CheckpointFormatOffer.kind) if each.plugin in selection.format_plugins
    }
    formats = {
        name: each.offer.create() for name, each in offered_formats.items() if isinstance(each.offer, CheckpointFormatOffer)
    }
    folder = resolve(resolved.settings["model"], resolved.settings, formats)
    config = read_config(folder, formats)
    architectures = [str(name) for name in config.get("architectures") or ()]
    family = _family(architectures, manager, selection)
    if not isinstance(family.offer, ModelOffer):
        raise TypeError(f"{family.name} is no model")
    spec = family.offer.family().spec(config)
    architecture = next(name for name in architectures if name in family.offer.architectures)
    return Found(folder, config, architecture, spec, family, offered_formats[folder.format])


def _family(architectures: list[str], manager: PluginManager, selection: Selection) -> Offered:
    """The chosen family that answers to the checkpoint; one whose plugin was named goes before one that is always there."""
    answering = [
        each
        for each in manager.offers(ModelOffer.kind)
        if isinstance(each.offer, ModelOffer) and set(each.offer.architectures) & set(architectures)
    ]
    chosen = [each for each in answering if each.plugin in selection.model_plugins]
    named = [each for each in chosen if each.plugin in selection.named]
    best = named or chosen
    title = " or ".join(architectures) or "unnamed"
    if len(best) == 1:
        return best[0]
    if best:
        raise UserError.of(
            f"{len(best)} plugins answer to the architecture {title}: {', '.join(each.plugin for each in best)}",
            "model",
            *(f"leave one out: --without {each.plugin}" for each in best),
        )
    if answering:
        plugins = ", ".join(dict.fromkeys(each.plugin for each in answering))
        raise UserError.of(f"the architecture {title} needs the plugin {plugins}", "model", f"add it: --plugins {plugins}")
    known = sorted(
        {
            name
            for each in manager.offers(ModelOffer.kind)
            if isinstance(each.offer, ModelOffer)
            for name in each.offer.architectures
        }
    )
    near = did_you_mean(architectures[0], known) if architectures else ""
    raise UserError.of(
        f"no installed plugin knows the architecture {title}{near}",
        "model",
        f"choose a model of one of these: {', '.join(known) or 'none is installed'}",
    )


def _is_here(model: str) -> bool:
    return model.startswith("random:") or Path(model).expanduser().exists()


def _by_origin(problem: Problem, configuration: Configuration) -> Problem:
    """Whoever looks for a model does not know where the setting was set; this step does."""
    if (problem.where,) not in configuration.vocabulary.settings:
        return problem
    origin = configuration.origin(problem.where)
    return dataclasses.replace(problem, where=origin if origin != "default" else f"default of {problem.where}")


def _name_choices(selection: Selection, settings: dict[str, Any]) -> None:
    """Where a setting said "auto", it now says what was chosen."""
    for kind, setting in KIND_SETTINGS.items():
        if kind in selection.offers:
            settings[setting] = selection.offers[kind].name
        elif kind in OPTIONAL_KINDS:
            settings[setting] = "none"


# --- facts and rules ----------------------------------------------------------------------------------------------------


def _facts(
    configuration: Configuration, selection: Selection, resolved: Resolved, probe: DeviceProbe, found: Found | None
) -> tuple[Facts, list[Problem]]:
    manager = configuration.vocabulary.manager
    settings = resolved.settings
    values: dict[str, Any] = {f"settings.{name}": value for name, value in settings.items()}
    values |= device_facts(settings["device"], probe)
    values |= _selection_facts(configuration, selection, found)
    schema = list(CORE_FACTS)
    for plugin in manager.plugins:
        if plugin.section is not None:
            schema += settings_facts(plugin.section, f"settings.{plugin.name}.")
            if plugin.name in selection.plugins:
                section, _ = configuration.section(plugin.name)
                values |= {f"settings.{plugin.name}.{name}": value for name, value in section.items()}
    if found is not None:
        values |= model_facts(found.folder.name, found.architecture, found.folder.format, found.spec)
        values |= _size_facts(selection, resolved, probe)
    problems = []
    for offered in selection.rules:
        if isinstance(offered.offer, RulesOffer):
            schema += offered.offer.facts
            more, mistake = _derived(offered, offered.offer, values, schema)
            values |= more
            problems += mistake
    return Facts(values, schema, _origins(configuration, selection, resolved)), problems


def _derived(
    offered: Offered, offer: RulesOffer, values: Mapping[str, Any], schema: Iterable[Fact]
) -> tuple[dict[str, Any], list[Problem]]:
    complete = Facts(values, schema)
    try:
        derived = dict(offer.derive(complete))
    except Exception as error:
        return {}, [
            Problem(
                f"plugin {offered.plugin} of {offered.provenance} cannot compute its facts: {type(error).__name__}: {error}"
            )
        ]
    strange = sorted(set(derived) - {fact.name for fact in offer.facts})
    if strange:
        return {}, [
            Problem(f"plugin {offered.plugin} of {offered.provenance} computes facts it did not declare: {', '.join(strange)}")
        ]
    return derived, []


def _selection_facts(configuration: Configuration, selection: Selection, found: Found | None) -> dict[str, Any]:
    backend, sampler = selection.offer("compute_backend"), selection.offer("sampler")
    graph, quantizer, scheduler = selection.offer("graph_backend"), selection.offer("quantizer"), selection.offer("scheduler")
    manager = configuration.vocabulary.manager
    framework = getattr(backend, "framework", None)
    splitting = splitting_schedulers(manager)
    unloaded = _unloaded(configuration, selection)
    values: dict[str, Any] = {f"chosen.{kind}": offered.name for kind, offered in selection.offers.items()}
    values["chosen.model"] = found.family.name if found else None
    values["chosen.checkpoint_format"] = found.format.name if found else None
    values["chosen.rules"] = ", ".join(offered.name for offered in selection.rules) or None
    for kind, names in selection.candidates.items():
        values |= {
            f"named.{kind}": names,
            f"named.{kind}.count": len(names),
            f"named.{kind}.first": names[0] if names else None,
        }
    return values | {
        "plugins": selection.plugins,
        "plugins.named": selection.named,
        "plugins.repeated": selection.repeated,
        "sections.unloaded": unloaded,
        "compute.framework": framework,
        "compute.missing_modules": tuple(name for name in getattr(backend, "requires", ()) if not _is_importable(name)),
        "sampler.frameworks": tuple(sorted(sampler.frameworks)) if sampler else None,
        "sampler.fitting": _fitting(manager, "sampler", framework),
        "graph_backend.frameworks": tuple(sorted(graph.frameworks)) or None if graph else None,
        "graph_backend.fitting": _fitting(manager, "graph_backend", framework),
        "quantizer.bits": float(quantizer.bits) if quantizer else None,
        "scheduler.splits_prompts": scheduler.splits_prompts if scheduler else None,
        "scheduler.splitting": splitting[0].name if splitting else None,
    }


def _fitting(manager: PluginManager, kind: str, framework: str | None) -> str | None:
    if framework is None:
        return None
    for offered in manager.offers(kind):
        frameworks: frozenset[str] = getattr(offered.offer, "frameworks", frozenset())
        if framework in frameworks or (kind == "graph_backend" and not frameworks):
            return offered.name
    return None


def _is_importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _unloaded(configuration: Configuration, selection: Selection) -> tuple[str, ...]:
    chosen = set(selection.plugins)
    return tuple(name for name in configuration.tables if name not in chosen)


def _size_facts(selection: Selection, resolved: Resolved, probe: DeviceProbe) -> dict[str, Any]:
    settings, memory = resolved.settings, resolved.memory
    assert memory is not None
    length, step = settings["max_model_len"], settings["max_num_batched_tokens"]
    pages = resolved.num_pages
    fitting_pages = memory.fitting_pages(step) if memory.budget is not None else None
    fitting = fitting_length(resolved, selection, memory, length) if memory.budget is not None else None
    capacity = None if pages is None else pages * memory.page_size
    activation = memory.activation(step)
    return {
        "compute.dtype": settings["dtype"],
        "kv.page_size": memory.page_size,
        "kv.num_pages": pages,
        "kv.pages_per_request": memory.pages_for(length),
        "kv.capacity_tokens": capacity,
        "kv.capacity_model_len": capacity if capacity is not None and capacity >= SHORTEST else None,
        "memory.weights_bytes": memory.weights,
        "memory.activation_bytes": activation,
        "memory.kv_page_bytes": memory.page,
        "memory.kv_bytes": None if pages is None else pages * memory.page,
        "memory.budget_bytes": budget_bytes(settings, probe),
        "memory.one_request_bytes": memory.one_request(length, step),
        "memory.total_bytes": None if pages is None else memory.weights + activation + pages * memory.page,
        "memory.smaller_dtype": "bfloat16" if settings["dtype"] == "float32" else None,
        "memory.fitting_pages": fitting_pages or None,
        "memory.fitting_model_len": fitting or None,
        "limits.max_batched_tokens": length * settings["max_num_seqs"],
    }


def _rules(selection: Selection, found: Found | None, facts: Facts) -> tuple[list[Rule], list[Problem]]:
    """The core's rules and those of every offer in use; a rule nobody can judge is its plugin's mistake."""
    rules = {rule.id: (rule, "core") for rule in CORE_RULES}
    problems: list[Problem] = []
    offered_ones = [*selection.offers.values(), *selection.rules]
    if found is not None:
        offered_ones += [found.family, found.format]
    for offered in offered_ones:
        for rule in offered.offer.rules:
            other, owner = rules.setdefault(rule.id, (rule, offered.plugin))
            if other != rule:
                problems.append(Problem(f"plugins {owner} and {offered.plugin} have different rules with the id {rule.id}"))
            mistakes = undeclared(rule, facts)
            problems += [
                dataclasses.replace(mistake, what=f"plugin {offered.plugin} of {offered.provenance}: {mistake.what}")
                for mistake in mistakes
            ]
            if mistakes:
                rules.pop(rule.id)
    return [rule for rule, _ in rules.values()], problems


# --- what the plan is made of -------------------------------------------------------------------------------------------


def _origins(configuration: Configuration, selection: Selection, resolved: Resolved) -> dict[str, str]:
    origins = {name: configuration.origin(name) for name in configuration.settings}
    origins |= {
        kind_setting: selection.origins[kind] for kind, kind_setting in KIND_SETTINGS.items() if kind in selection.origins
    }
    origins |= {
        f"chosen.{kind}": selection.origins[kind]
        for kind in KIND_SETTINGS
        if selection.origins.get(kind, "default") != "default"
    }
    origins |= resolved.origins
    for plugin in configuration.vocabulary.manager.plugins:
        for name in configuration.vocabulary.fields(plugin.name):
            origins[f"{plugin.name}.{name}"] = configuration.origin(plugin.name, name)
    unloaded = _unloaded(configuration, selection)
    said = [said.origin for name in unloaded for said in configuration.table(name).values()]
    if said:
        origins["sections.unloaded"] = ", ".join(dict.fromkeys(said))
    for kind, names in selection.candidates.items():
        if len(names) > 1:
            origins[f"named.{kind}.count"] = ", ".join(
                dict.fromkeys(selection.origins[each] for each in selection.named if each in selection.origins)
            )
    return origins


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
