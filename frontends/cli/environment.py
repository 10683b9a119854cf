"""``dovetail collect-env``: what somebody has to know of a machine to help its user, as markdown to paste. Nothing is sent."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from core.errors import ExitCode, UserError
from frontends.cli import machine
from frontends.cli.findings import lines

PREFIXES = ("DOVETAIL_", "FD_", "HF_", "HUGGINGFACE_", "MODELSCOPE_", "CUDA_", "NVIDIA_", "NCCL_", "TORCH", "TRITON_", "OMP_",
            "MKL_", "PADDLE_", "PYTORCH_", "PYTHON", "LD_", "OPENAI_")  # fmt: skip
NAMES = ("CXX", "CC", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "TMPDIR",
         "XDG_CACHE_HOME", "NO_COLOR", "TERM", "LANG", "LC_ALL", "VIRTUAL_ENV", "CONDA_PREFIX")  # fmt: skip
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)
_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")
_LOOKS_SECRET = re.compile(r"\b(?:hf_|sk-|ghp_|glpat-)[A-Za-z0-9_-]{8,}")
_SECRET_FLAG = re.compile(r"(--[a-z0-9-]*(?:key|token|secret|password)[a-z0-9-]*)([= ])(\S+)", re.IGNORECASE)
MASK = "***"
EXTRAS = ("torch", "http", "paddle", "modelscope", "aistudio", "ray", "bench")
MORE_PACKAGES = ("triton", "pip", "uv", "uvloop", "httptools")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dovetail collect-env",
        usage="%(prog)s [--json] [flags of serve]",
        description="What somebody has to know of this machine to help you, as markdown to paste into an issue. Secrets are "
        "masked, your home folder is written ~, nothing is sent anywhere. With flags of `dovetail serve` it tells what they "
        "compose to as well. Read it before you paste it.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    return parser


def collect(arguments: Sequence[str]) -> int:
    options, flags = parser().parse_known_args(arguments)
    framework = machine.Framework("torch") if find_spec("torch") else None
    try:
        report = masked_deep(gathered(flags, framework))
    finally:
        if framework is not None:
            framework.close()
    sys.stdout.write(json.dumps(report, indent=2) + "\n" if options.json else as_markdown(report))
    return ExitCode.OK


def gathered(flags: Sequence[str], framework: machine.Framework | None) -> dict[str, Any]:
    from core.compose.probe import probe_devices
    from core.host import free_and_total_memory
    from core.plugin_manager import PluginManager
    from frontends.cli.doctor import examine

    probe = probe_devices()
    free, total = free_and_total_memory()
    findings = list(examine(flags, framework))
    torch = framework.found() if framework is not None else {"error": "it is not installed"}
    return {
        "dovetail": machine.version_of(machine.DISTRIBUTION),
        "python": {"version": platform.python_version(), "implementation": platform.python_implementation(),
                   "executable": sys.executable},
        "system": {"platform": platform.platform(), "libc": " ".join(platform.libc_ver()), "container": in_container()},
        "processor": {"name": probe.cpu_name, "cores": probe.cores, "logical": os.cpu_count(), "quota": machine.quota(),
                      "flags": [flag for flag in probe.flags if re.match(r"avx|amx|f16c|fma|asimd|sve|bf16|i8mm", flag)]},
        "memory": {"memory_bytes": total, "free_bytes": free, "huge_pages": machine.huge_pages()},
        "gpus": [asdict(gpu) for gpu in probe.devices],
        "driver": machine.nvidia_driver(),
        "probe_note": probe.note,
        "torch": torch or {"error": f"its import did not end in {machine.IMPORT_TIMEOUT:g} s"},
        "packages": packages(),
        "plugins": [{"name": each.name, "state": each.state, "from": each.provenance, "error": each.error}
                    for each in PluginManager.discover().plugins],
        "variables": variables(os.environ),
        "flags": " ".join(flags),
        "composition": composed(flags) if flags else None,
        "findings": [asdict(each) for each in findings],
        "_doctor": list(lines(findings, False)),
    }  # fmt: skip


def composed(flags: Sequence[str]) -> str:
    """What --explain says of them, or why they do not compose. A model that is not here is not fetched for it."""
    from core.compose import compose
    from core.compose.configuration import read
    from core.compose.first_pass import first_pass
    from core.compose.report import explain_text
    from core.models.demo import NAME
    from core.models.sources import RANDOM, kept

    try:
        first = first_pass(flags)
        settings = read(first, first.discover()).settings
        model = str(settings.get("model", ""))
        place = None if model.startswith(RANDOM) else kept(model, settings)
        if place is None and not model.startswith(RANDOM):
            return f"{model} is not here, and nothing is fetched for a report\n"
        here = model == NAME or place is None or Path(os.path.expanduser(model)).exists()
        return explain_text(compose([*flags, *([] if here else ["--model", str(place)])]))
    except UserError as error:
        return f"{error}\n"


def packages() -> dict[str, str]:
    """Of what this program needs or can use, what is here."""
    names = dict.fromkeys([*(name for name, *_ in machine.requirements(EXTRAS)), *MORE_PACKAGES])
    third = {each.dist.name for each in metadata.entry_points(group="dovetail") if each.dist is not None}
    found = {name: machine.version_of(name) for name in [*names, *sorted(third)]}
    return {name: version for name, version in found.items() if version is not None}


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    chosen = {name: value for name, value in sorted(environment.items()) if name.startswith(PREFIXES) or name in NAMES}
    return {name: MASK if _SECRET.search(name) else value for name, value in chosen.items()}


def in_container() -> bool:
    return Path("/.dockerenv").exists() or Path("/run/.containerenv").exists() or "container" in os.environ


def masked(text: str) -> str:
    text = _IN_URL.sub(f"{MASK}@", text)
    text = _SECRET_FLAG.sub(rf"\1\2{MASK}", text)
    text = _LOOKS_SECRET.sub(MASK, text)
    home = os.path.expanduser("~")
    return text.replace(home, "~") if len(home) > 1 else text


def masked_deep(value: Any) -> Any:
    match value:
        case str():
            return masked(value)
        case Mapping():
            return {name: masked_deep(each) for name, each in value.items()}
        case list() | tuple():
            return [masked_deep(each) for each in value]
        case _:
            return value


def as_markdown(report: Mapping[str, Any]) -> str:
    processor, memory, torch = report["processor"], report["memory"], report["torch"]
    quota = f", {processor['quota']:g} of time allowed" if processor["quota"] is not None else ""
    rows = {
        "dovetail": report["dovetail"],
        "Python": f"{report['python']['version']} ({report['python']['implementation']}), {report['python']['executable']}",
        "system": report["system"]["platform"] + (", in a container" if report["system"]["container"] else ""),
        "processor": f"{processor['name']}, {processor['cores']} cores of {processor['logical']}{quota}",
        "instructions": " ".join(processor["flags"]),
        "memory": f"{_free(memory)}, huge pages: {memory['huge_pages']}",
        "GPUs": "; ".join(f"{gpu['name']} ({gpu['capability']:.1f}), {_free(gpu)}" for gpu in report["gpus"]) or "none",
        "driver": report["driver"] or "none",
        "torch": torch.get("error")
        or f"{torch['version']}, CUDA {torch['built_for_cuda'] or 'none'}, sees a device: {'yes' if torch['cuda'] else 'no'}",
    }
    parts = ["## Environment\n", "| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in rows.items())]
    parts += ["", _folded("packages", "\n".join(f"{name} {version}" for name, version in report["packages"].items()))]
    states = [f"{each['name']} {each['state']} {each['from']} {each['error']}".rstrip() for each in report["plugins"]]
    parts += [_folded("plugins", "\n".join(states))]
    parts += [_folded("variables", "\n".join(f"{name}={value}" for name, value in report["variables"].items()) or "none")]
    title = f"doctor {report['flags']}".rstrip()
    parts += [_folded(title, "\n".join(report["_doctor"]))]
    if report["composition"] is not None:
        parts += [_folded("composition", report["composition"].rstrip())]
    return "\n".join(parts) + "\n"


def _free(memory: Mapping[str, Any]) -> str:
    return f"{memory['free_bytes'] / 2**30:.1f} of {memory['memory_bytes'] / 2**30:.1f} GiB free"


def _cell(text: object) -> str:
    return str(text).replace("|", "\\|")


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n```\n{text}\n```\n\n</details>\n"
