"""Rules and facts as data. ``core.compose.rules.judge`` applies them; a plugin contributes them with its offer.

A rule forbids a conjunction: when *every* condition holds, it is violated. Conditions compare a fact with a constant or with
another fact; anything that needs arithmetic is a fact of its own, so that --explain can show it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Operator = Literal["==", "!=", "<", "<=", ">", ">=", "in", "not in", "contains", "divides", "not divides"]
Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Fact:
    """Declares a fact: its dotted name, its type and what it means. A rule about an undeclared fact is refused."""

    name: str
    type: type
    doc: str


@dataclass(frozen=True)
class FactRef:
    """The value of another fact, on the right-hand side of a condition."""

    name: str


@dataclass(frozen=True)
class Condition:
    """``fact op value``. A condition about a fact whose value is None (unknown) does not hold, except ``==``/``!=`` with None.

    "contains": the fact is a collection that has ``value``. "divides"/"not divides": the fact divides ``value``, or not.
    """

    fact: str
    op: Operator
    value: Any


@dataclass(frozen=True)
class Remedy:
    """One way out. ``text`` tells the user; ``set`` is the same as settings (key -> value), for the test that proves the cure.

    ``text`` may use {fact.name} placeholders. ``set`` values may be ``FactRef``. The key "plugins+" adds names to the chosen
    plugins, "plugins-" takes them away. A remedy outside the configuration (a larger machine) has no ``set``.
    """

    text: str
    set: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rule:
    """``id`` is stable and unique ("max-model-len-beyond-positions"); ``reason`` is one sentence, {fact.name} allowed."""

    id: str
    when: tuple[Condition, ...]
    reason: str
    remedies: tuple[Remedy, ...]
    severity: Severity = "error"
