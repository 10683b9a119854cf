"""Gathering what is judged: the facts of settings, machine, choices and model, and the rules of everyone in the composition."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from core.checked_offers import described, is_of_type
from core.compose.automatic import SHORTEST, Resolved, budget_bytes, fitting_length
from core.compose.calling import call
from core.compose.choose import Selection, splitting_schedulers
from core.compose.configuration import Configuration
from core.compose.core_rules import CORE_RULES
from core.compose.exchange import framework_between, is_importable, number_formats
from core.compose.facts import CORE_FACTS, GIB, Facts, device_facts, model_facts, settings_facts, shard_facts
from core.compose.find_model import Found
from core.compose.memory import Memory
from core.compose.probe import DeviceProbe
from core.compose.rules import undeclared
from core.compose.settings import KIND_SETTINGS
from core.errors import Problem, UserError
from core.interfaces.rules import Fact, Rule
from core.offers import HEAD_QUANTIZER, QuantizerOffer, RulesOffer
from core.plugin_manager import Offered, PluginManager, remedies


def gather_facts(
    configuration: Configuration, selection: Selection, resolved: Resolved, probe: DeviceProbe, found: Found | None
) -> tuple[Facts, list[Problem]]:
    manager = configuration.manager
    settings = resolved.settings
    values: dict[str, Any] = {f"settings.{name}": value for name, value in settings.items()}
    values |= device_facts(settings["device"], probe)
    values |= _selection_facts(configuration, selection, found, settings["device"])
    schema = list(CORE_FACTS)
    for plugin in manager.plugins:
        if plugin.section is not None:
            schema += settings_facts(plugin.section, f"settings.{plugin.name}.")
            if plugin.name in selection.plugins or configuration.table(plugin.name):
                section, _ = configuration.section(plugin.name)
                values |= {f"settings.{plugin.name}.{name}": value for name, value in section.items()}
    values |= {"parallel.ranks": resolved.ranks, "parallel.rank": 0}
    if found is not None:
        values |= model_facts(found.folder.name, found.architecture, found.folder.format, found.spec)
        values |= shard_facts(found.spec, resolved.ranks, len(probe.devices) if settings["device"] == "cuda" else None)
        values["model.head_packed_by"] = _packer_of_head(found, manager)
        values |= _size_facts(selection, resolved, probe)
    problems: list[Problem] = []
    owners = {fact.name: "the core" for fact in schema}
    for offered in selection.rules:
        if isinstance(offered.offer, RulesOffer):
            mistakes = _taken(offered, offered.offer.facts, owners)
            schema += [fact for fact in offered.offer.facts if fact.name not in owners]
            if not mistakes:
                more, mistakes = _derived(offered, offered.offer, values, schema)
                values |= more
            owners |= {fact.name: f"plugin {offered.plugin}" for fact in offered.offer.facts if fact.name not in owners}
            problems += mistakes
    return Facts(values, schema, origins_of(configuration, selection, resolved)), problems


def _derived(
    offered: Offered, offer: RulesOffer, values: Mapping[str, Any], schema: Iterable[Fact]
) -> tuple[dict[str, Any], list[Problem]]:
    complete = Facts(values, schema)
    try:
        derived: Mapping[str, Any] = call(offered, "derive", complete)
    except UserError as error:
        return {}, list(error.problems)
    strange = sorted(set(derived) - {fact.name for fact in offer.facts})
    mistakes = [f"computes facts it did not declare: {', '.join(strange)}"] if strange else []
    mistakes += [
        f"computes the fact {fact.name} as {described(derived[fact.name])}, and declares it as {fact.type.__name__}"
        for fact in offer.facts
        if not is_of_type(derived.get(fact.name), fact.type)
    ]
    return ({} if mistakes else dict(derived)), [_mistake(offered, what) for what in mistakes]


def _taken(offered: Offered, facts: Iterable[Fact], owners: Mapping[str, str]) -> list[Problem]:
    """Facts of a plugin that are another's already, or the core's."""
    return [
        _mistake(offered, f"declares the fact {fact.name}, which is one of {owners[fact.name]}: give it a name of its own")
        for fact in facts
        if fact.name in owners
    ]


def _mistake(offered: Offered, what: str) -> Problem:
    problem = f"plugin {offered.plugin} of {offered.provenance} {what}"
    return Problem(problem, "", remedies(offered.plugin, offered.provenance))


def _selection_facts(configuration: Configuration, selection: Selection, found: Found | None, device: str) -> dict[str, Any]:
    backend, sampler = selection.offer("compute_backend"), selection.offer("sampler")
    graph, quantizer, scheduler = selection.offer("graph_backend"), selection.offer("quantizer"), selection.offer("scheduler")
    head, parallelism = selection.offer(HEAD_QUANTIZER), selection.offer("parallelism")
    manager = configuration.manager
    framework = getattr(backend, "framework", None)
    formats = number_formats(backend, device)
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
        "compute.splits": getattr(backend, "splits", None),
        "compute.devices": getattr(backend, "devices", None),
        "compute.device": next(iter(getattr(backend, "devices", ())), None),
        "compute.dtypes": formats,
        "compute.best_dtype": formats[0] if formats else None,
        "parallel.frameworks": tuple(sorted(parallelism.frameworks)) if parallelism else None,
        "compute.package": _package(selection.offers.get("compute_backend"), framework),
        "compute.missing_modules": tuple(name for name in getattr(backend, "requires", ()) if not is_importable(name)),
        "sampler.frameworks": tuple(sorted(sampler.frameworks)) if sampler else None,
        "sampler.between": framework_between(selection),
        "sampler.fitting": _fitting(manager, "sampler", framework),
        "graph_backend.frameworks": tuple(sorted(graph.frameworks)) or None if graph else None,
        "graph_backend.fitting": _fitting(manager, "graph_backend", framework),
        "quantizer.bits": float(quantizer.bits) if quantizer else None,
        "quantizer.rounds_activations": quantizer.rounds_activations if quantizer else None,
        "head_quantizer.rounds_activations": head.rounds_activations if head else None,
        "scheduler.splits_prompts": scheduler.splits_prompts if scheduler else None,
        "scheduler.splitting": splitting[0].name if splitting else None,
    }


def _package(backend: Offered | None, framework: str | None) -> str | None:
    """A distribution of its own depends on what its backend imports; this one has an extra for each framework."""
    if backend is None or backend.provenance.startswith("no distribution"):
        return None
    distribution = backend.provenance.partition(" ")[0]
    return f"{distribution}[{framework}]" if distribution == "dovetail-serve" else distribution


def _fitting(manager: PluginManager, kind: str, framework: str | None) -> str | None:
    if framework is None:
        return None
    for offered in manager.offers(kind):
        frameworks: frozenset[str] = getattr(offered.offer, "frameworks", frozenset())
        if framework in frameworks or (kind == "graph_backend" and not frameworks):
            return offered.name
    return None


def _unloaded(configuration: Configuration, selection: Selection) -> tuple[str, ...]:
    """Plugins that are not chosen, of which settings are given that are not what they would be anyway."""
    chosen = set(selection.plugins)
    return tuple(name for name in configuration.tables if name not in chosen and _is_changed(name, configuration))


def _is_changed(plugin: str, configuration: Configuration) -> bool:
    values, problems = configuration.section(plugin)
    defaults = {name: configuration.vocabulary.settings[plugin, name].default for name in values}
    return bool(problems) or values != defaults


def _packer_of_head(found: Found, manager: PluginManager) -> str | None:
    """One that is not installed is told of by who chooses it."""
    packer = found.packing.of_head if found.packing is not None else None
    names = [offered.name for offered in manager.offers(QuantizerOffer.kind)]
    return packer.quantizer if packer is not None and packer.quantizer in names else None


def _size_facts(selection: Selection, resolved: Resolved, probe: DeviceProbe) -> dict[str, Any]:
    settings, memory = resolved.settings, resolved.memory
    assert memory is not None
    length, step = settings["max_model_len"], settings["max_num_batched_tokens"]
    pages = resolved.num_pages
    fitting_pages = _fitting_pages(settings, memory, length, step)
    asked_in_gib = settings["num_gpu_blocks_override"] is None and settings["kv_cache_memory"] is not None
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
        "memory.budget_bytes": budget_bytes(settings, probe, resolved.ranks),
        "memory.one_request_bytes": memory.one_request(length, step),
        "memory.total_bytes": None if pages is None else memory.weights + activation + pages * memory.page,
        "memory.host_spare_gib": _host_spare_gib(settings, resolved, probe),
        "memory.smaller_dtype": "bfloat16" if settings["dtype"] == "float32" else None,
        "memory.fitting_pages": None if asked_in_gib else fitting_pages,
        "memory.fitting_kv_gib": _whole_gib(fitting_pages, memory, length, resolved.ranks) if asked_in_gib else None,
        "memory.fitting_model_len": fitting or None,
        "limits.max_batched_tokens": length * settings["max_num_seqs"],
    }


def _fitting_pages(settings: Mapping[str, Any], memory: Memory, length: int, step: int) -> int | None:
    """A CPU's memory is everyone's, and what is free of it changes: a tenth is left, unless one request needs that too."""
    if memory.budget is None:
        return None
    spared = memory.budget // 10 if settings["device"] == "cpu" else 0
    one = memory.pages_for(length)
    most = memory.fitting_pages(step)
    return max(one, min(most, memory.fitting_pages(step, spared))) if one <= most else None


def _whole_gib(pages: int | None, memory: Memory, length: int, ranks: int) -> float | None:
    """In hundredths where that is enough for one request, so that it can be typed."""
    if pages is None:
        return None
    page, one = memory.page * ranks, memory.pages_for(length)
    hundredths = math.floor(pages * page / GIB * 100) / 100
    return hundredths if int(hundredths * GIB) // page >= one else math.ceil(one * page / GIB * 1e6) / 1e6


def _host_spare_gib(settings: Mapping[str, Any], resolved: Resolved, probe: DeviceProbe) -> float:
    """Nine tenths of what is free, less what the server takes of it when it runs on the CPU; whole hundredths of a GiB."""
    free = probe.free_bytes
    if settings["device"] != "cuda" and resolved.memory is not None:
        memory = resolved.memory
        own = memory.weights + memory.activation(settings["max_num_batched_tokens"]) + (resolved.num_pages or 0) * memory.page
        free -= own * resolved.ranks
    return max(0, int(free * 0.9 / GIB * 100)) / 100


def gather_rules(selection: Selection, found: Found | None, facts: Facts) -> tuple[list[Rule], list[Problem]]:
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


def idle_rules(manager: PluginManager, plugins: Iterable[str]) -> dict[str, tuple[Rule, ...]]:
    """What plugins that are not chosen say of settings that are given to them."""
    found = {name: manager.get(name) for name in plugins}
    return {name: tuple(rule for offer in each.offers for rule in offer.idle_rules) for name, each in found.items() if each}


def origins_of(configuration: Configuration, selection: Selection, resolved: Resolved) -> dict[str, str]:
    origins = {name: configuration.origin(name) for name in configuration.settings}
    origins |= {
        kind_setting: selection.origins[kind] for kind, kind_setting in KIND_SETTINGS.items() if kind in selection.origins
    }
    origins |= {
        f"chosen.{kind}": selection.origins[kind]
        for kind in KIND_SETTINGS
        if selection.origins.get(kind, "default") != "default"
    }
    if "parallelism" in selection.offers:
        table = configuration.table(selection.offers["parallelism"].plugin)
        origins["parallel.ranks"] = ", ".join(dict.fromkeys(said.origin for said in table.values())) or "default"
    origins |= resolved.origins
    for plugin in configuration.manager.plugins:
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
