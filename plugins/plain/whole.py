"""Whole prompts: one is computed in a single step or waits, and nobody overtakes it meanwhile."""

from __future__ import annotations

from core.interfaces.request import Request
from core.interfaces.scheduler import SchedulingPolicy, StepBudget


class WholePrompts(SchedulingPolicy):
    def order(self, request: Request) -> tuple[float, ...]:
        return (request.priority,)

    def grant(self, remaining: int, budget: StepBudget) -> int:
        return remaining if remaining <= budget.left else 0
