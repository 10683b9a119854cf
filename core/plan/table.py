"""Which hardware runs a configuration: the same composition, judged by the same rules, for one machine after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.compose.composition import Composition, attempt
from core.compose.first_pass import FirstPass
from core.compose.hardware import Hardware
from core.errors import Problem
from core.offers import ParallelismOffer
from core.plugin_manager import PluginManager

COUNTS = (1, 2, 4, 8)
BY_TABLE = "LLM(quantization=...)"  # the origin of what ``composed`` asks for
OF_MEMORY = frozenset({"model-larger-than-memory", "request-larger-than-memory", "cache-larger-than-memory"})
"""Rules whose violation more devices may cure."""


@dataclass(frozen=True)
class Need:
    """What a configuration takes of each device, in bytes; ``pages`` and what follows from them is None where it is unknown.

    ``requests``: how many of the longest length have room for their KV pages at the same time.
    """

    weights: int
    activations: int
    graphs: int
    kv_of_a_request: int
    kv: int | None
    requests: int | None


@dataclass(frozen=True)
class Cell:
    """One configuration on one machine: ``gpus`` of it are enough, or None and the problems that one of them has."""

    gpus: int | None
    need: Need | None
    problems: tuple[Problem, ...] = ()
    parameters: int | None = None  # of the model; None where it was not found


@dataclass(frozen=True)
class Row:
    hardware: Hardware
    cells: Mapping[str, Cell]  # by quantization


def table(
    first: FirstPass, manager: PluginManager, hardware: Sequence[Hardware], quantizations: Sequence[str], counts: Sequence[int]
) -> list[Row]:
    return [Row(each, {name: cell(first, manager, each, name, counts) for name in quantizations}) for each in hardware]


def cell(first: FirstPass, manager: PluginManager, hardware: Hardware, quantization: str, counts: Sequence[int]) -> Cell:
    """The fewest GPUs of ``counts`` that run it. More are tried only where it is memory that one lacks."""
    problems: tuple[Problem, ...] = ()
    parameters = None
    for gpus in counts if hardware.device == "cuda" else (1,):
        found = composed(first, manager, hardware, quantization, gpus)
        parameters = found.facts["model.parameters"]
        if found.plan is not None:
            return Cell(gpus, need(found.plan.facts), parameters=parameters)
        problems = problems or tuple(found.problems)
        if not _lacks_memory(found):
            break
    return Cell(None, None, problems, parameters)


def composed(first: FirstPass, manager: PluginManager, hardware: Hardware, quantization: str, gpus: int) -> Composition:
    asked = {**first.overrides, "device": hardware.device, "quantization": quantization}
    if gpus > 1:
        asked |= shared_by(gpus, manager)
    probe = hardware.probe
    if hardware.device == "cuda":
        probe = dataclasses.replace(probe, devices=(probe.devices[0],) * gpus)
    return attempt(dataclasses.replace(first, overrides=asked), manager, probe)


def shared_by(gpus: int, manager: PluginManager) -> dict[str, dict[str, int]]:
    """What is asked for so that several hold one model: of the first offer that can."""
    for each in manager.offers(ParallelismOffer.kind):
        if isinstance(each.offer, ParallelismOffer):
            return {each.plugin: {each.offer.size: gpus}}
    return {}


def need(facts: Mapping[str, Any]) -> Need:
    pages, one = facts["kv.num_pages"], facts["kv.pages_per_request"]
    return Need(
        weights=facts["memory.weights_bytes"],
        activations=facts["memory.activation_bytes"],
        graphs=facts.get("memory.graph_bytes") or 0,
        kv_of_a_request=one * facts["memory.kv_page_bytes"],
        kv=facts["memory.kv_bytes"],
        requests=None if pages is None else pages // one,
    )


def refusal(rows: Sequence[Row]) -> tuple[Problem, ...]:
    """Where nothing runs: what is wrong with the first format that fails on every machine for the same reasons."""
    if any(found.gpus is not None for row in rows for found in row.cells.values()):
        return ()
    for name, first in rows[0].cells.items():
        everywhere = set.intersection(*({problem.what for problem in row.cells[name].problems} for row in rows))
        shared = [problem for problem in first.problems if problem.what in everywhere]
        if shared:
            return tuple(dataclasses.replace(each, where=each.where.replace(BY_TABLE, "--quantization")) for each in shared)
    return ()


def departures(rows: Sequence[Row]) -> list[str]:
    """Where this table and FastDeploy's page of a model differ, and where the page contradicts itself or the hardware."""
    notes = []
    of_page = [row for row in rows if any(found.parameters == row.hardware.page_parameters for found in row.cells.values())]
    for row in of_page:
        if row.hardware.note:
            notes.append(f"{row.hardware.name}: {row.hardware.note}")
        for quantization, asked in row.hardware.page.items():
            found = row.cells.get(quantization)
            if found is not None and (found.gpus or 0) != asked:
                notes.append(
                    f"{row.hardware.name}, {quantization}: the page says {_gpus(asked)}, here it is {_gpus(found.gpus)}"
                )
    return notes


def _lacks_memory(found: Composition) -> bool:
    return any(violation.rule.id in OF_MEMORY for violation in found.violations)


def _gpus(number: int | None) -> str:
    return f"{number} GPU{'s' * (number > 1)}" if number else "none can"
