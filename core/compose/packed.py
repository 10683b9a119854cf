"""A checkpoint that was saved packed says which quantizer reads it; and what a composition is that only saves one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from pydantic_core import to_jsonable_python

from core.compose.automatic import resolve_machine, resolve_sizes
from core.compose.choose import Selection, select
from core.compose.configuration import Configuration, read, refuse_with
from core.compose.core_rules import CORE_RULES
from core.compose.facts import Facts
from core.compose.find_model import find_model
from core.compose.first_pass import first_pass
from core.compose.gather import gather_facts, origins_of
from core.compose.head import select_head, settle_head
from core.compose.judgement import name_choices
from core.compose.plan import Choice, Plan, by_origin
from core.compose.probe import probe_devices
from core.compose.rules import judge
from core.compose.vocabulary import Said
from core.errors import Problem, UserError
from core.interfaces.quantizer import Quantizer
from core.models.packed import Packer, Packing, layouts
from core.offers import HEAD_QUANTIZER, QuantizerOffer
from core.plugin_manager import Offered, PluginManager

OF_SAVING = frozenset(
    {
        "plugins",
        "without",
        "model",
        "revision",
        "model_source",
        "model_cache",
        "quantization",
        "head_quantization",
        "dtype",
        "seed",
    }
)
"""The core's settings that decide what is saved."""
OF_PACKING = frozenset({"two-quantizers", "head-of-a-format-that-rounds-activations"})
"""The core's rules that judge it."""


def take_packing(packing: Packing, model: str, configuration: Configuration, selection: Selection) -> list[Problem]:
    """Choose who packed the checkpoint, with the checkpoint's settings, whatever was said, and warn of what was.

    Of a head that is packed a rule judges what was said; one that is not may be packed while it is loaded.

    :raises UserError: when a plugin of theirs is not there.
    """
    origin = f"config.json of {model}"
    asked = selection.choice("quantizer")
    warnings = []
    if packing.of_layers:
        offered = _packer(packing, model, configuration.manager)
        if asked is not None and asked.name != offered.name:
            what = f"quantization {asked.name} has no effect: {model} is packed as {offered.name} already"
            warnings.append(_overruled(what, asked.origin))
        selection.take("quantizer", offered, origin)
        warnings += _take_settings(packing, offered, model, configuration)
    if configuration.settings["head_quantization"] == "auto" and packing.of_layers:
        selection.offers.pop(HEAD_QUANTIZER, None)
        selection.origins.pop(HEAD_QUANTIZER, None)
    if packing.of_head is not None:
        offered = _packer(packing.of_head, model, configuration.manager)
        if configuration.settings["head_quantization"] == "auto":
            selection.take(HEAD_QUANTIZER, offered, origin)
        if packing.of_head != packing or not packing.of_layers:
            warnings += _take_settings(packing.of_head, offered, model, configuration)
    return warnings


def _take_settings(packer: Packer, offered: Offered, model: str, configuration: Configuration) -> list[Problem]:
    origin = f"config.json of {model}"
    warnings = []
    said = configuration.table(offered.plugin)
    before, _ = configuration.section(offered.plugin)
    for name, value in packer.settings.items():
        if name not in _at_load(offered):
            configuration.given[(offered.plugin, name)] = Said((offered.plugin, name), value, origin)
    after, _ = configuration.section(offered.plugin)
    for name in sorted(said.keys() & after.keys()):
        if before.get(name) != after[name]:
            key = f"{offered.plugin}.{name}"
            what = f"{key} = {before.get(name)} has no effect: {model} is packed with {after[name]} already"
            warnings.append(_overruled(what, said[name].origin))
    return warnings


def _at_load(offered: Offered) -> frozenset[str]:
    return offered.offer.at_load if isinstance(offered.offer, QuantizerOffer) else frozenset()


def _overruled(what: str, origin: str) -> Problem:
    return Problem(what, origin, ("drop it", "choose the model that was packed, and pack it otherwise"))


def _packer(packing: Packer, model: str, manager: PluginManager) -> Offered:
    offers = [each for each in manager.offers(QuantizerOffer.kind) if each.name == packing.quantizer]
    found = next((each for each in offers if each.plugin == packing.plugin), None)
    if found is not None:
        return found
    plugin = manager.get(packing.plugin)
    if plugin is None:
        state, remedies = "is not installed", [f"install {packing.plugin}"]
    elif plugin.state == "loaded":
        state, remedies = "offers no such quantizer", [f"install the version of {packing.plugin} that packed it"]
    elif plugin.state == "blocked":
        state, remedies = "is left out by --without", [f"drop {packing.plugin} from --without"]
    else:
        state, remedies = f"is {plugin.state}: {plugin.error}", [f"mend or replace {packing.plugin}"]
    raise UserError.of(
        f"the weights of {model} are packed as {packing.quantizer} by the plugin {packing.plugin}, which {state}",
        "model",
        *remedies,
        "choose the checkpoint that was packed",
    )


def compose_saving(argv: Sequence[str], *, env: Mapping[str, str] | None = None, manager: PluginManager | None = None) -> Plan:
    """Of a composition, what saving a packed checkpoint needs: the model, and the quantizer with its settings.

    Rules about machines have no say: what is packed here may be served elsewhere.

    :raises UserError: with everything that is wrong, at once.
    """
    first = first_pass(argv, env)
    manager = manager or first.discover()
    configuration = read(first, manager)
    selection = select(configuration)
    select_head(configuration, selection)
    refuse_with([*configuration.problems, *selection.problems])
    kinds = QuantizerOffer.kind, HEAD_QUANTIZER
    packers = {kind: selection.offers[kind] for kind in kinds if kind in selection.offers}
    refuse_with([*_meaningless(configuration, packers.values()), *_no_packer(packers, manager)])
    settle_head(configuration, selection, stored=False)
    probe = probe_devices(first.env)
    resolved = resolve_machine(configuration, probe)
    try:
        found = find_model(configuration, selection, resolved)
    except UserError as error:
        origins = origins_of(configuration, selection, resolved)
        raise UserError(*(by_origin(problem, origins) for problem in error.problems)) from error
    if found.packing is not None:
        raise UserError.of(
            f"{found.folder.name} is packed as {found.packing.quantizer} already",
            configuration.origin("model"),
            "choose the model that was packed",
        )
    resolve_sizes(resolved, configuration, selection, found.spec, probe)
    name_choices(selection, resolved.settings)
    facts, problems = gather_facts(configuration, selection, resolved, probe, found)
    anywhere = {name: value for name, value in facts.items() if not name.startswith("device.")}
    rules = [rule for rule in CORE_RULES if rule.id in OF_PACKING]
    rules += {rule.id: rule for packer in packers.values() for rule in packer.offer.rules}.values()
    violations = judge(Facts(anywhere, facts.schema.values(), origins_of(configuration, selection, resolved)), rules)
    refused = [each.problem() for each in violations if each.rule.severity == "error"]
    sections = {packer.plugin: configuration.section(packer.plugin) for packer in packers.values()}
    refuse_with([*problems, *(mistake for _, mistakes in sections.values() for mistake in mistakes), *refused])
    chosen = {**packers, "model": found.family, "checkpoint_format": found.format}
    return Plan(
        settings=resolved.settings,
        sections={plugin: section for plugin, (section, _) in sections.items()},
        origins=origins_of(configuration, selection, resolved),
        choices=tuple(Choice(kind, each.name, each.plugin, each.provenance, "") for kind, each in chosen.items()),
        facts=dict(facts),
        model=found.folder,
        spec=found.spec,
        config=found.config,
    )


def packing_of(plan: Plan, quantizer: Quantizer, manager: PluginManager) -> Packing:
    """What config.json says of a checkpoint that this plan saves."""
    first, *other = packers_of(plan, manager)
    return Packing(first.quantizer, first.plugin, first.settings, layouts(quantizer), head=other[0] if other else None)


def packers_of(plan: Plan, manager: PluginManager) -> Iterator[Packer]:
    """Of the layers, if they are packed, and of the head, if that is another."""
    choices = [choice for kind in (QuantizerOffer.kind, HEAD_QUANTIZER) if (choice := plan.chosen(kind)) is not None]
    for name, plugin in dict.fromkeys((choice.name, choice.plugin) for choice in choices):
        offered = next(each for each in manager.offers(QuantizerOffer.kind) if (each.name, each.plugin) == (name, plugin))
        settings = {key: value for key, value in plan.sections[plugin].items() if key not in _at_load(offered)}
        yield Packer(name, plugin, to_jsonable_python(settings))


def _meaningless(configuration: Configuration, packers: Iterable[Offered]) -> list[Problem]:
    """What a config file or the environment says for serving is left alone; a flag was meant for this command."""
    own = {packer.plugin for packer in packers}
    flags = [
        said.origin
        for key, said in configuration.given.items()
        if not (key[0] in OF_SAVING if len(key) == 1 else key[0] in own)
    ]
    flags += [origin for name, origin in configuration.features.items() if name not in own]
    return [
        Problem(f"{flag} has no part in saving a packed checkpoint", "", ("drop it",))
        for flag in dict.fromkeys(flags)
        if flag.startswith("--")
    ]


def _no_packer(packers: Mapping[str, Offered], manager: PluginManager) -> list[Problem]:
    if packers:
        return []
    names = [offered.name for offered in manager.offers(QuantizerOffer.kind)]
    remedies = [f"--quantization {name}" for name in names] or ["install a plugin that offers a quantizer"]
    return [Problem("nothing says in which format the weights are to be packed", "", tuple(remedies))]
