"""What a page asks of the composition: the plan that is served, what could be chosen instead, and how that would be judged."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Mapping
from functools import cached_property
from threading import Lock
from typing import Any

from pydantic import BaseModel, SecretStr

from core.compose.composition import Composition, attempt
from core.compose.facts import show
from core.compose.first_pass import FirstPass
from core.compose.hardware import Hardware, known_hardware, this_machine
from core.compose.plan import Choice, Plan
from core.compose.report import KEY_FACTS
from core.compose.settings import KIND_SETTINGS, CoreSettings
from core.compose.vocabulary import Setting, Vocabulary
from core.errors import Problem, RequestError
from core.interfaces.frontend import Composer
from core.interfaces.rules import Remedy
from core.offers import OPTIONAL_KINDS, FrontEndOffer, PageOffer
from core.plugin_manager import PluginManager

HERE = "here"
COUNTS = (1, 2, 4, 8)
_DOORS = (FrontEndOffer.kind, PageOffer.kind)
"""Kinds that no other choice depends on, and whose settings say where this server listens and to whom."""
_TYPES = ("integer", "number", "boolean")


class PlanComposer(Composer):
    """Answers are plain data as JSON has it. A secret never leaves, and neither a path nor a name can be asked for: only what
    is installed, numbers, switches and words of a closed list. The model is the plan's own.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._lock = Lock()  # a vocabulary may mark a plugin as broken
        self._model = {} if plan.origins.get("model", "default") == "default" else {"--model": plan.settings["model"]}
        self._machines: dict[str, Hardware] = {}
        if plan.machine is not None:
            self._machines[HERE] = this_machine(plan.machine)
        self._machines |= {each.name: each for each in known_hardware()}

    @cached_property
    def _manager(self) -> PluginManager:
        return PluginManager.discover(self._plan.settings["without"])

    @cached_property
    def _known(self) -> Plan:
        """The plan with all that its model's files have to say of a composition, so that they are read once."""
        from core.text.chat_template import template_source

        plan = self._plan
        if plan.template is not None:
            return plan
        return dataclasses.replace(plan, template=template_source(plan.model, plan.settings["chat_template"]))

    @cached_property
    def _settings(self) -> dict[str, dict[str, Any]]:
        """What may be asked for, by key."""
        with self._lock:
            found = {
                ".".join(setting.key): entry
                for setting in Vocabulary(self._manager).settings.values()
                if self._is_asked_for(setting) and (entry := _entry(setting, self._model_of(setting))) is not None
            }
            for kind, name in KIND_SETTINGS.items():
                if kind not in _DOORS:
                    found[name] |= self._offers(kind)
            return found

    # --- what a page asks -------------------------------------------------------------------------------------------

    def plan(self) -> dict[str, Any]:
        plan = self._plan
        kinds = KIND_SETTINGS
        nothing = [
            Choice(kind, "none", "", "", plan.origins.get(kinds[kind], "default"))
            for kind in OPTIONAL_KINDS
            if plan.chosen(kind) is None
        ]
        return {
            "model": plan.model.name,
            "choices": [
                {**dataclasses.asdict(choice), "why": plan.reasons.get(kinds.get(choice.kind, ""), "")}
                for choice in (*plan.choices, *nothing)
            ],
            "settings": [
                {"name": name, "value": _shown(value), "origin": plan.origins.get(name, ""), "why": plan.reasons.get(name, "")}
                for name, value in plan.settings.items()
                if name not in kinds.values()
            ],
            "sections": [
                {"name": name, "value": _shown(value), "origin": plan.origins.get(name, ""), "why": ""}
                for plugin, section in plan.sections.items()
                for name, value in ((f"{plugin}.{key}", value) for key, value in section.items())
            ],
            "facts": [
                {"name": name, "value": show(name, plan.facts[name]), "why": plan.reasons.get(name, "")} for name in KEY_FACTS
            ],
            "warnings": [dataclasses.asdict(problem) for problem in plan.warnings],
        }

    def words(self) -> dict[str, Any]:
        return {
            "model": self._plan.model.name,
            "machines": [
                {"id": key, "name": each.name, "device": each.device, "counts": _counts(each)}
                for key, each in self._machines.items()
            ],
            "settings": list(self._settings.values()),
        }

    def judge(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        settings, count = asked.get("settings", {}), asked.get("count", 1)
        machine = asked.get("machine") or next(iter(self._machines))
        hardware = self._machines.get(str(machine))
        if hardware is None:
            raise RequestError(f"machine {str(machine)[:80]!r} is none of {', '.join(self._machines)}", param="machine")
        counts = _counts(hardware)
        if count not in counts:
            raise RequestError(f"count is to be one of {', '.join(map(str, counts))} on {hardware.name}", param="count")
        if hardware.device == "cuda" and (machine != HERE or count != 1):
            devices = hardware.probe.devices[:1] * count
            hardware = dataclasses.replace(hardware, probe=dataclasses.replace(hardware.probe, devices=devices))
        flags = self._flags(settings)
        with self._lock:
            composition = self._attempt(flags, hardware)
            answer = self._judged(composition)
            if asked.get("neighbours"):
                answer["neighbours"] = self._neighbours(settings, hardware, composition)
        return answer | {"command": self._command(flags)}

    # --- how it is found out ----------------------------------------------------------------------------------------

    def _attempt(self, flags: Mapping[str, str], hardware: Hardware) -> Composition:
        argv = tuple(word for flag, value in {**self._model, **flags}.items() for word in _words(flag, value))
        first = FirstPass(argv, {}, {}, frozenset(), None, ())
        return attempt(first, self._manager, hardware.probe, self._known)

    def _judged(self, composition: Composition) -> dict[str, Any]:
        violations = {each.problem(): each for each in composition.violations}
        problems = []
        for problem in dict.fromkeys([*composition.problems, *violations, *self._warnings(composition)]):
            violation = violations.get(problem)
            problems.append(
                {
                    "rule": violation.id if violation else "",
                    "severity": _severity(problem, composition),
                    "what": problem.what,
                    "where": problem.where,
                    "remedies": [self._remedy(each) for each in violation.remedies]
                    if violation
                    else [{"text": text, "set": None} for text in problem.remedies],
                }
            )
        plan = composition.plan
        return {
            "ok": plan is not None,
            "problems": problems,
            "choices": [] if plan is None else [dataclasses.asdict(each) for each in plan.choices],
            "facts": [] if plan is None else [{"name": name, "value": show(name, plan.facts[name])} for name in KEY_FACTS],
        }

    def _warnings(self, composition: Composition) -> tuple[Problem, ...]:
        return composition.plan.warnings if composition.plan is not None else ()

    def _remedy(self, remedy: Remedy) -> dict[str, Any]:
        """``set`` is what a page can do by itself: settings to change, None for those to leave open again."""
        changes: dict[str, Any] = {}
        for key, value in remedy.set.items():
            if key == "plugins-":
                changes |= {
                    name: None
                    for name, entry in self._settings.items()
                    if any(offer["plugin"] in value for offer in entry.get("offers", ()))
                }
            elif key in self._settings:
                changes[key] = value
            else:
                return {"text": remedy.text, "set": None}
        return {"text": remedy.text, "set": changes or None}

    def _neighbours(
        self, settings: Mapping[str, Any], hardware: Hardware, here: Composition
    ) -> dict[str, dict[str, list[str]]]:
        """For each offer that is not chosen, the rules that would refuse it, and do not refuse what is chosen."""
        broken = {each.id for each in here.violations}
        found: dict[str, dict[str, list[str]]] = {}
        for key, entry in self._settings.items():
            for choice in entry["choices"] if "offers" in entry else ():
                if settings.get(key) != choice and choice != "auto":
                    composition = self._attempt(self._flags({**settings, key: choice}), hardware)
                    rules = [each.id for each in composition.violations if each.rule.severity == "error"]
                    rules = [rule for rule in rules if rule not in broken]
                    if rules or (here.plan is not None and composition.plan is None):
                        found.setdefault(key, {})[choice] = rules
        return found

    def _flags(self, settings: Mapping[str, Any]) -> dict[str, str]:
        """:raises RequestError: for what cannot be asked for."""
        flags = {}
        for key, value in settings.items():
            entry = self._settings.get(key)
            if entry is None:
                raise RequestError(f"{str(key)[:80]!r} is no setting that can be tried here", param=f"settings.{str(key)[:80]}")
            if entry["choices"] and value not in entry["choices"]:
                known = ", ".join(str(each).lower() for each in entry["choices"])
                raise RequestError(f"{key} is to be one of {known}", param=f"settings.{key}")
            if not entry["choices"] and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise RequestError(f"{key} is to be a number", param=f"settings.{key}")
            if value is False:
                flags[f"--no-{entry['flag'][2:]}"] = ""
            else:
                flags[entry["flag"]] = "" if value is True else str(value)
        return flags

    def _command(self, flags: Mapping[str, str]) -> str:
        words = (word for flag, value in {**self._model, **flags}.items() for word in _words(flag, value))
        return shlex.join(["dovetail", "serve", *words])

    # --- what may be asked for --------------------------------------------------------------------------------------

    def _is_asked_for(self, setting: Setting) -> bool:
        if len(setting.key) == 1:
            return setting.key[0] not in [KIND_SETTINGS[kind] for kind in _DOORS]
        plugin = self._manager.get(setting.key[0])
        return plugin is not None and any(offer.kind not in _DOORS for offer in plugin.offers)

    def _model_of(self, setting: Setting) -> type[BaseModel]:
        plugin = self._manager.get(setting.key[0]) if len(setting.key) > 1 else None
        return plugin.section if plugin is not None and plugin.section is not None else CoreSettings

    def _offers(self, kind: str) -> dict[str, Any]:
        offers = [
            {"name": each.name, "summary": each.offer.summary, "plugin": each.plugin} for each in self._manager.offers(kind)
        ]
        names = [str(each["name"]) for each in offers]
        return {
            "kind": kind,
            "offers": offers,
            "choices": ["auto", *names, *(["none"] if kind in OPTIONAL_KINDS else [])],
        }


def _entry(setting: Setting, model: type[BaseModel]) -> dict[str, Any] | None:
    """A setting as a form shows it; None for one that takes text."""
    field = model.model_json_schema()["properties"][setting.key[-1]]
    shapes = [each for each in field.get("anyOf", [field]) if each.get("type") != "null"]
    shape = shapes[0] if len(shapes) == 1 else {}
    kind = setting.key[0] in KIND_SETTINGS.values() and len(setting.key) == 1
    if not kind and shape.get("type") not in _TYPES and "enum" not in shape:
        return None
    choices = [False, True] if shape.get("type") == "boolean" else list(shape.get("enum", ()))
    return {
        "key": ".".join(setting.key),
        "flag": setting.flag,
        "plugin": setting.key[0] if len(setting.key) > 1 else "",
        "description": setting.description,
        "type": "choice" if kind or "enum" in shape else shape["type"],
        "choices": choices,
        "default": setting.default if isinstance(setting.default, (bool, int, float, str)) else None,
        "minimum": shape.get("minimum", shape.get("exclusiveMinimum")),
        "maximum": shape.get("maximum", shape.get("exclusiveMaximum")),
    }


def _counts(hardware: Hardware) -> tuple[int, ...]:
    return COUNTS if hardware.device == "cuda" else (1,)


def _words(flag: str, value: str) -> Iterator[str]:
    yield flag
    if value:
        yield value


def _severity(problem: Problem, composition: Composition) -> str:
    return "error" if problem in composition.problems else "warning"


def _shown(value: Any) -> str:
    """As --explain has it; a secret is only counted."""
    if value is None:
        return "-"
    if isinstance(value, (tuple, list)):
        return ", ".join(map(_shown, value)) or "-"
    if isinstance(value, SecretStr):
        return "secret"
    return str(value).lower() if isinstance(value, bool) else str(value)
