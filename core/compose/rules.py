"""Judging facts by rules: pure, and never one violation at a time. The core's own rules are data in ``core_rules``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from core.compose.facts import Facts, show
from core.errors import Problem, UserError
from core.interfaces.rules import Condition, FactRef, Remedy, Rule
from core.suggest import did_you_mean

_PLACEHOLDER = re.compile(r"\{([a-z_][a-z0-9_.+]*)\}")

_OPERATIONS: dict[str, Callable[[Any, Any], bool]] = {
    "==": lambda fact, value: fact == value,
    "!=": lambda fact, value: fact != value,
    "<": lambda fact, value: fact < value,
    "<=": lambda fact, value: fact <= value,
    ">": lambda fact, value: fact > value,
    ">=": lambda fact, value: fact >= value,
    "in": lambda fact, value: fact in value,
    "not in": lambda fact, value: fact not in value,
    "contains": lambda fact, value: value in fact,
    "divides": lambda fact, value: value % fact == 0,
    "not divides": lambda fact, value: value % fact != 0,
}


@dataclass(frozen=True)
class Violation:
    """One broken rule: the reason with its values filled in, where each value came from, and the remedies that apply here.

    The ``set`` of a remedy holds plain values: every ``FactRef`` is resolved.
    """

    rule: Rule
    reason: str
    origins: tuple[str, ...]
    remedies: tuple[Remedy, ...]

    @property
    def id(self) -> str:
        return self.rule.id

    def problem(self) -> Problem:
        return Problem(self.reason, ", ".join(self.origins), tuple(remedy.text for remedy in self.remedies))


def judge(facts: Facts | Mapping[str, Any], rules: Iterable[Rule]) -> list[Violation]:
    """Every violated rule, in the order of ``rules``, warnings among them.

    :raises UserError: when a rule is about a fact nobody declared, or compares what cannot be compared.
    """
    known = facts if isinstance(facts, Facts) else Facts.of(facts)
    rules = tuple(rules)
    mistakes = [problem for rule in rules for problem in undeclared(rule, known)]
    if mistakes:
        raise UserError(*mistakes)
    return [_violation(rule, known) for rule in rules if all(_holds(rule, condition, known) for condition in rule.when)]


def facts_of(rule: Rule) -> tuple[str, ...]:
    """Every fact a rule speaks of, in its conditions, its texts and its remedies."""
    names = [condition.fact for condition in rule.when]
    names += [condition.value.name for condition in rule.when if isinstance(condition.value, FactRef)]
    names += _PLACEHOLDER.findall(rule.reason)
    for remedy in rule.remedies:
        names += _PLACEHOLDER.findall(remedy.text)
        names += [value.name for value in remedy.set.values() if isinstance(value, FactRef)]
    return tuple(dict.fromkeys(names))


def undeclared(rule: Rule, facts: Facts) -> list[Problem]:
    """A problem for each fact of the rule that is in no schema."""
    return [
        Problem(f"rule {rule.id} is about {name!r}, which is no fact{did_you_mean(name, facts.schema)}")
        for name in facts_of(rule)
        if name not in facts.schema
    ]


def _holds(rule: Rule, condition: Condition, facts: Facts) -> bool:
    fact = facts[condition.fact]
    value = facts[condition.value.name] if isinstance(condition.value, FactRef) else condition.value
    about_none = condition.value is None and condition.op in ("==", "!=")
    if not about_none and (fact is None or value is None):
        return False
    try:
        return bool(_OPERATIONS[condition.op](fact, value))
    except (TypeError, KeyError, ZeroDivisionError) as error:
        raise UserError.of(
            f"rule {rule.id} cannot judge {condition.fact} {condition.op} {value!r}: {condition.fact} is {fact!r} ({error})"
        ) from error


def _violation(rule: Rule, facts: Facts) -> Violation:
    involved = [condition.fact for condition in rule.when]
    involved += [condition.value.name for condition in rule.when if isinstance(condition.value, FactRef)]
    origins = tuple(dict.fromkeys(origin for name in involved for origin in facts.origins_of(name)))
    return Violation(rule, fill(rule.reason, facts), origins, tuple(_applicable(rule.remedies, facts)))


def _applicable(remedies: Iterable[Remedy], facts: Facts) -> Iterable[Remedy]:
    """A remedy that needs a value nobody knows is no remedy here."""
    for remedy in remedies:
        needed = _PLACEHOLDER.findall(remedy.text) + [ref.name for ref in remedy.set.values() if isinstance(ref, FactRef)]
        if all(facts[name] is not None for name in needed):
            values = {key: facts[value.name] if isinstance(value, FactRef) else value for key, value in remedy.set.items()}
            yield Remedy(fill(remedy.text, facts), values)


def fill(text: str, facts: Facts) -> str:
    """``text`` with each {fact.name} replaced by its value as a user reads it."""
    return _PLACEHOLDER.sub(lambda match: show(match[1], facts[match[1]]), text)
