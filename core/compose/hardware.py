"""Machines that people ask about, known without one being at hand: ``hardware.toml``."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from core.compose.probe import DeviceProbe, Gpu

MIB = 1 << 20


@dataclass(frozen=True)
class Hardware:
    """A machine to ask about. ``page``: the GPUs that FastDeploy's page asks for, by quantization; 0 for "cannot". The model of
    that page has ``page_parameters``.
    """

    name: str
    probe: DeviceProbe
    device: str
    page: Mapping[str, int] = field(default_factory=dict)
    page_parameters: int = 0
    note: str = ""

    @property
    def capability(self) -> float | None:
        return self.probe.devices[0].capability if self.device == "cuda" else None

    @property
    def memory_bytes(self) -> int:
        return self.probe.devices[0].memory_bytes if self.device == "cuda" else self.probe.free_bytes


def known_hardware() -> list[Hardware]:
    """``hardware.toml``, each card alone in an otherwise idle machine."""
    known = tomllib.loads((Path(__file__).parent / "hardware.toml").read_text(encoding="utf-8"))
    return [
        Hardware(
            name=card["name"],
            probe=_with_gpus(card["name"], card["capability"], card["memory_mib"] * MIB),
            device="cuda",
            page=card.get("page", {}),
            page_parameters=known["page_parameters"],
            note=card.get("note", ""),
        )
        for card in known["gpu"]
    ]


def this_machine(probe: DeviceProbe) -> Hardware:
    device = "cuda" if probe.devices else "cpu"
    name = probe.devices[0].name if probe.devices else probe.cpu_name
    return Hardware(f"this machine ({name})", probe, device)


def _with_gpus(name: str, capability: float, memory_bytes: int) -> DeviceProbe:
    gpu = Gpu(name, capability, memory_bytes, memory_bytes)
    return DeviceProbe("", 16, (), 256 << 30, 256 << 30, (gpu,))
