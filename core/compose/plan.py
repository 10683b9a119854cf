"""The plan: everything that was decided, frozen and picklable. Workers get the plan, never the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from core.errors import Problem

if TYPE_CHECKING:
    from core.compose.probe import DeviceProbe
    from core.interfaces.model import DecoderSpec, ModelFolder
    from core.models.packed import Packing


@dataclass(frozen=True)
class Choice:
    """One chosen offer: its kind and name, the plugin it comes from, where that plugin is installed, and why it was chosen."""

    kind: str
    name: str
    plugin: str
    provenance: str  # "dovetail-serve 0.1.0 (plain.plugin)"
    origin: str  # "--plugins", "$FD_SAMPLING_CLASS", "demo.toml:3", "default"


@dataclass(frozen=True)
class Plan:
    """``settings`` holds the core's values by name, ``sections`` each chosen plugin's by plugin name, ``origins`` where each
    dotted key ("max_model_len", "openai_http.port") was set. ``facts`` are what the rules judged. ``config`` is the
    checkpoint's, in config.json's terms; ``packing`` is what it says of packed weights. ``reasons`` says, for each setting that
    was left open, why it became what it is. ``machine`` is what was found of it before anything was loaded,
    ``template`` the source of the chat template, where it was looked at.
    """

    settings: Mapping[str, Any]
    sections: Mapping[str, Mapping[str, Any]]
    origins: Mapping[str, str]
    choices: tuple[Choice, ...]
    facts: Mapping[str, Any]
    model: ModelFolder
    spec: DecoderSpec
    config: Mapping[str, Any] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[Problem, ...] = ()
    packing: Packing | None = None
    machine: DeviceProbe | None = None
    template: str | None = None

    def chosen(self, kind: str) -> Choice | None:
        """The one choice of a single kind; None when an optional kind has none."""
        return next((choice for choice in self.choices if choice.kind == kind), None)

    @property
    def plugins(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(choice.plugin for choice in self.choices))


def by_origin(problem: Problem, origins: Mapping[str, str]) -> Problem:
    """Whoever meets a problem knows which setting it is about, and says so in ``where``; the origin is where that was set."""
    origin = origins.get(problem.where)
    if origin is None:
        return problem
    return dataclasses.replace(problem, where=f"{origin} of {problem.where}" if origin in ("default", "auto") else origin)
