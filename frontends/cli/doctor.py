"""``dovetail doctor``: what is wrong with this machine or with a configuration, and what to do about each."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import UserError
from frontends.cli import machine
from frontends.cli.findings import Finding, of_problem, ok, show, warn
from frontends.cli.host_findings import (
    GIB,
    compiling,
    devices,
    disk,
    framework_state,
    limits,
    memory,
    port,
    processors,
    python,
)

if TYPE_CHECKING:
    from core.compose.plan import Plan
    from core.compose.probe import DeviceProbe
    from core.plugin_manager import PluginManager

USUAL = "torch"  # its import is begun at once, since it takes the longest
STAND_IN = "random:ernie-4.5-0.3b"
COMPILED = "torch.compiler"  # the fact that names the compiler of native kernels


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dovetail doctor",
        usage="%(prog)s [--json] [flags of serve]",
        description="What is wrong with this machine or with a configuration, and what to do about each. Without flags it "
        "looks at what `dovetail serve` would start; --config and every other flag of it are judged as they would be there. "
        "Nothing is fetched and nothing is started.",
        epilog="Exit code 1: something has to be mended before it can work.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="the findings as JSON: state, about, what, remedies")
    return parser


def doctor(arguments: Sequence[str]) -> int:
    options, flags = parser().parse_known_args(arguments)
    framework = machine.Framework(USUAL) if find_spec(USUAL) else None
    try:
        return show(examine(flags, framework), as_json=options.json)
    finally:
        if framework is not None:
            framework.close()


def examine(flags: Sequence[str], framework: machine.Framework | None) -> Iterator[Finding]:
    yield from python()
    yield from processors()
    yield from limits()
    from core.compose.configuration import read
    from core.compose.first_pass import first_pass
    from core.compose.probe import probe_devices

    try:
        first = first_pass(flags)
        probe = probe_devices(first.env)
    except UserError as error:
        yield from (of_problem("fail", "configuration", problem) for problem in error.problems)
        return
    manager = first.discover()
    yield from plugins(manager)
    settings = read(first, manager).settings
    yield from memory(probe)
    yield from devices(probe)
    yield from disk(settings)
    plan = None
    for each in composition(flags, manager, probe, settings):
        if isinstance(each, Finding):
            yield each
        else:
            plan = each
    if plan is not None:
        yield from of_plan(plan, plan.model.name if plan.model.name == STAND_IN else settings["model"])
    yield from frameworks(plan, probe, framework)


# --- the configuration --------------------------------------------------------------------------------------------------


def plugins(manager: PluginManager) -> Iterator[Finding]:
    from core.compose.vocabulary import Vocabulary

    Vocabulary(manager)  # what is wrong with a plugin's settings or flags shows only when all are put together
    broken = [plugin for plugin in manager.plugins if plugin.state == "broken"]
    for plugin in broken:
        remedies = ("mend or uninstall it", f"or leave it out: --without {plugin.name}")
        yield warn("plugins", f"{plugin.name} of {plugin.provenance} is broken and left out: {plugin.error}", *remedies)
    yield from (of_problem("fail", "plugins", problem) for problem in manager.conflicts)
    loaded = sum(plugin.state == "loaded" for plugin in manager.plugins)
    if not broken and not manager.conflicts:
        yield ok("plugins", f"{loaded} are installed, none is broken")


def composition(
    flags: Sequence[str], manager: PluginManager, probe: DeviceProbe, settings: Mapping[str, Any]
) -> Iterator[Finding | Plan]:
    """What is wrong; or the plan. A model that would have to be fetched is stood in for by random weights."""
    from core.compose.composition import attempt
    from core.compose.first_pass import first_pass
    from core.models.demo import NAME, is_whole
    from core.models.sources import HUB_FILE, HUB_NAME, kept

    model = settings.get("model")
    instead: str | None = None
    if model is not None and (model == NAME or HUB_NAME.fullmatch(model) or HUB_FILE.fullmatch(model)):
        place = kept(model, settings)
        if place is None or (model == NAME and not is_whole(place)):
            instead = STAND_IN
            yield warn(
                "model", f"{model} is not here: the first start fetches it", f"fetch it now: dovetail models pull {model}"
            )
        elif not Path(os.path.expanduser(model)).exists() and model != NAME:
            instead = str(place)  # its hub is not asked whether there is a newer one
    try:
        found = attempt(first_pass([*flags, *([] if instead is None else ["--model", instead])]), manager, probe)
    except UserError as error:
        yield from (of_problem("fail", "configuration", problem) for problem in error.problems)
        return
    yield from (of_problem("fail", "configuration", problem) for problem in found.problems)
    plan = found.plan
    if plan is None:
        return
    loud = [problem for problem in plan.warnings if "is broken and left out" not in problem.what]
    yield from (of_problem("warn", "configuration", problem) for problem in loud)
    yield ok("configuration", f"composes: {', '.join(f'{each.name}' for each in plan.choices if each.kind != 'rules')}")
    if instead != STAND_IN:
        yield from text_side(plan)
    yield plan


def text_side(plan: Plan) -> Iterator[Finding]:
    from core.models.sources import text_files
    from core.text.chat_template import load_chat_template
    from core.text.tokenizer import load_tokenizer

    try:
        folder = text_files(plan.model, plan.settings)
        tokenizer = load_tokenizer(folder, plan.config)
        template = load_chat_template(folder, plan.settings["chat_template"], tokenizer)
        template = template or load_chat_template(plan.model, None, tokenizer)
    except UserError as error:
        yield from (of_problem("fail", "tokenizer", problem) for problem in error.problems)
        return
    yield ok("tokenizer", f"{tokenizer.vocab_size} tokens")
    if template is None:
        yield warn("chat template", f"{plan.model.name} has none: chat requests are refused", "--chat-template FILE")
    else:
        yield ok("chat template", "parses")


def of_plan(plan: Plan, model: str) -> Iterator[Finding]:
    facts = plan.facts
    total, budget = facts.get("memory.total_bytes"), facts.get("memory.budget_bytes")
    if total is not None and budget is not None:
        yield ok(
            "model",
            f"{model} takes {total / GIB:.2f} GiB of the {budget / GIB:.2f} it may use on {facts['device.name']}",
        )
    threads, cores = plan.settings["threads"], facts["cpu.cores"]
    if facts["device.kind"] == "cpu" and threads > cores:
        yield warn(
            "threads", f"{threads} threads on {cores} cores: they wait for each other", f"--threads {cores}, or leave it out"
        )
    if compiler := facts.get(COMPILED):
        yield from compiling(compiler)
    for name, section in plan.sections.items():
        if "host" in section:
            keys = [key for key in section if key == "port" or key.endswith("_port")]
            yield from (port(name, key, section["host"], section[key]) for key in keys if section[key])


def frameworks(plan: Plan | None, probe: DeviceProbe, begun: machine.Framework | None) -> Iterator[Finding]:
    name = plan.facts["compute.framework"] if plan is not None else USUAL
    if begun is None or begun.name != name:
        if find_spec(name) is None:
            return  # the packages, or a rule, have said so
        begun = machine.Framework(name)
    found = begun.found()
    begun.close()
    yield from framework_state(name, found, on_cuda=bool(probe.devices))
