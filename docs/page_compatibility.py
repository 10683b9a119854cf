"""``docs/compatibility.md``: which features go together, and on which hardware: each pair composed as a launch does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.compose.composition import attempt
from core.compose.first_pass import FirstPass
from core.compose.probe import DeviceProbe, Gpu
from core.plugin_manager import PluginManager

MODEL = "random:ernie-4.5-0.3b"
GIB = 1 << 30
CPU = ("AMD EPYC", 16, ("avx2", "avx512f"), 256 * GIB, 240 * GIB)
HARDWARE: dict[str, tuple[str, float, int, int]] = {  # title -> name, capability, GiB, how many
    "A10 24G": ("NVIDIA A10", 8.6, 24, 1),
    "A30 24G": ("NVIDIA A30", 8.0, 24, 1),
    "A800 80G": ("NVIDIA A800", 8.0, 80, 1),
    "L20 48G": ("NVIDIA L20", 8.9, 48, 1),
    "H20 96G": ("NVIDIA H20", 9.0, 96, 1),
    "H800 80G": ("NVIDIA H800", 9.0, 80, 1),
    "2x H800 80G": ("NVIDIA H800", 9.0, 80, 2),
    "CPU": ("", 0.0, 0, 0),
}
PAIRED_ON = "2x H800 80G"

FEATURES: dict[str, dict[str, Any]] = {
    "wint8": {"quantization": "wint8"},
    "wint4": {"quantization": "wint4"},
    "block_wise_fp8": {"quantization": "block_wise_fp8"},
    "prefix caching": {"cache_policy": "prefix"},
    "swap space": {"swap_space": 4.0},
    "chunked prefill": {"scheduler": "chunked"},
    "several partial prefills": {"max_num_partial_prefills": 4},
    "partitioned pages": {"block_policy": "partitioned"},
    "rejection sampler": {"sampler": "rejection"},
    "CUDA graphs": {"graph": "cuda"},
    "CUDA graphs, full scope": {"graph": "cuda", "graph_cuda_scope": "full"},
    "tensor parallel 2": {"tensor_parallel_size": 2},
    "prompt lookup": {"speculation": "ngram"},
    "steps shorter than a prompt": {"max_num_batched_tokens": 2048, "max_model_len": 32768},
}
"""Title -> what chooses it, as the offline ``LLM`` takes it."""
NEEDS: dict[str, tuple[str, ...]] = {
    "swap space": ("prefix caching",),
    "several partial prefills": ("chunked prefill",),
    "steps shorter than a prompt": ("chunked prefill",),
}
"""What is chosen by the side of a feature where it is not itself what is looked at: it is nothing without it."""

PAGE = """\
<!-- Generated from the rules of the core and of the plugins by docs/build.py:
change those, then run `nox -s docs -- --write`. -->

# What goes together

Found by composing each pair as a launch does, for ERNIE-4.5-0.3B on two H800, and by judging it by the rules. `ok`: it
composes, and no rule has anything to say. A name is the rule that refuses, or *warns*; [facts.md](plugins/facts.md) says why,
and what to do about it. A launch tells all violated rules at once, with the flags that caused them and with remedies.

## Feature and feature

{pairs}

## Feature and hardware

{hardware}

## Rules of one feature

Those that no pair above breaks: they hang on values, on the model or on the machine.

{others}
"""


def page(manager: PluginManager) -> str:
    matrix, hardware = pairs(manager), machines(manager)
    seen = {rule for cell in [*matrix.values(), *hardware.values()] for rule, _ in cell}
    titles = list(FEATURES)
    head = ["", *map(str, range(1, len(titles) + 1))]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for number, one in enumerate(titles, 1):
        cells = ["" if titles.index(other) >= number - 1 else shown(matrix[other, one]) for other in titles]
        cells[number - 1] = "-"
        lines.append(f"| {number} {one} | {' | '.join(cells)} |")
    table = [f"| | {' | '.join(HARDWARE)} |", "|---" * (len(HARDWARE) + 1) + "|"]
    table += [f"| {one} | {' | '.join(shown(hardware[one, machine]) for machine in HARDWARE)} |" for one in titles]
    others = [f"* [`{rule}`](plugins/facts.md#{rule})" for rule in all_rules(manager) if rule not in seen]
    return PAGE.format(pairs="\n".join(lines), hardware="\n".join(table), others="\n".join(others))


Broken = tuple[tuple[str, str], ...]
"""Rules and their severity."""


def pairs(manager: PluginManager) -> dict[tuple[str, str], Broken]:
    titles = list(FEATURES)
    return {
        (one, other): broken(together(one, other), PAIRED_ON, manager)
        for number, one in enumerate(titles)
        for other in titles[number + 1 :]
    }


def machines(manager: PluginManager) -> dict[tuple[str, str], Broken]:
    return {(one, machine): broken(together(one), machine, manager) for one in FEATURES for machine in HARDWARE}


def together(*titles: str) -> dict[str, Any] | None:
    """The settings of features, and of what they need; None when two of them are values of one setting."""
    settings: dict[str, Any] = {}
    for title in titles:
        for name, value in FEATURES[title].items():
            if settings.setdefault(name, value) != value:
                return None
    for title in titles:
        for needed in NEEDS.get(title, ()):
            for name, value in FEATURES[needed].items():
                settings.setdefault(name, value)
    return settings


def broken(settings: Mapping[str, Any] | None, machine: str, manager: PluginManager) -> Broken:
    if settings is None:
        return (("one or the other", "choice"),)
    name, capability, memory, count = HARDWARE[machine]
    gpu = Gpu(name, capability, memory * GIB, memory * GIB - GIB // 2)
    probe = DeviceProbe(*CPU, devices=(gpu,) * count)
    first = FirstPass((), {}, {"model": MODEL, **settings}, frozenset(), None, ())
    composition = attempt(first, manager, probe)
    violations = {violation.id: violation.rule.severity for violation in composition.violations}
    unexplained = composition.plan is None and "error" not in violations.values()
    if unexplained:
        raise ValueError(f"{settings} on {machine}: " + "; ".join(problem.what for problem in composition.problems))
    return tuple(violations.items())


def shown(cell: Broken) -> str:
    if not cell:
        return "ok"
    words = {"error": "[{0}](plugins/facts.md#{0})", "warning": "*[{0}](plugins/facts.md#{0})*", "choice": "{0}"}
    return ", ".join(words[severity].format(rule) for rule, severity in cell)


def all_rules(manager: PluginManager) -> list[str]:
    from core.compose.core_rules import CORE_RULES

    offered = [
        offer for plugin in manager.plugins if plugin.provenance.startswith("dovetail-serve ") for offer in plugin.offers
    ]
    return [rule.id for rule in CORE_RULES] + list(
        dict.fromkeys(rule.id for offer in offered for rule in (*offer.rules, *offer.idle_rules))
    )
