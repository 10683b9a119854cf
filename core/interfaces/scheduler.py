"""A scheduling policy: in which order requests are admitted, and how many prompt tokens one step may compute for each.

The engine's scheduler owns the mechanism (budget, pages, preemption); a policy only answers these two questions, so it
can be a dozen lines. Each step the scheduler spends ``budget`` tokens: one for every decoding request first, then
prompts already begun, then waiting requests in ``order``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from core.interfaces.request import Request


@dataclass(slots=True)
class StepBudget:
    """What a policy may look at when it grants tokens. ``left`` shrinks as the step fills."""

    total: int
    left: int
    num_decodes: int = 0
    num_prefills: int = 0  # prompts that were granted tokens in this step
    num_partial: int = 0  # of these, prompts that will not be finished by it
    num_behind: int = 0  # prompts that may still be asked about after this one


class SchedulingPolicy(ABC):
    """``keeps_order``: a prompt that is granted nothing holds back all behind it. A policy that says False lets them overtake,
    and must not let them do so for ever.
    """

    keeps_order: bool = True

    @abstractmethod
    def order(self, request: Request) -> tuple[float, ...]:
        """The sort key of a waiting request: smaller runs earlier. Ties run in order of arrival."""

    @abstractmethod
    def grant(self, remaining: int, budget: StepBudget) -> int:
        """How many of a prompt's ``remaining`` uncomputed tokens to compute now; 0 lets it wait for a later step.

        At most ``min(remaining, budget.left)``. Asked only while ``budget.left`` is at least 1.
        """
