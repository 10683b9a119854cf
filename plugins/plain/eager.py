"""No graph: a step is launched operation by operation."""

from __future__ import annotations

from core.interfaces.graph import Forward, GraphBackend, StaticSteps


class Eager(GraphBackend):
    def prepare(self, forward: Forward, static_steps: StaticSteps, draws: bool = False) -> Forward:
        return forward

    def describe(self) -> str:
        return "eager: nothing recorded, no memory taken"
