"""How a step's tokens are dealt to prompts.

One partial prompt at a time (the default) takes all that is left, so the first in the queue is done soonest. With more,
each takes an equal share, and short prompts need not wait for a long one: only ``max_long`` of the partial ones may be long.
"""

from __future__ import annotations

from core.interfaces.request import Request
from core.interfaces.scheduler import SchedulingPolicy, StepBudget


class ChunkedPrefill(SchedulingPolicy):
    # A long prompt that is one too many is overtaken. Not for ever: begun prompts go on in every step, and when the long
    # one among them is done, the next in the queue is asked first.
    keeps_order = False

    def __init__(self, max_partial: int = 1, max_long: int = 1, long_threshold: int = 0) -> None:
        self._max_partial = max_partial
        self._max_long = max_long
        self._long_threshold = long_threshold
        self._num_long = 0  # long prompts left partial by the step being dealt

    def order(self, request: Request) -> tuple[float, ...]:
        return (request.priority,)

    def grant(self, remaining: int, budget: StepBudget) -> int:
        if not budget.num_prefills:
            self._num_long = 0  # a new step: nobody has been granted anything
        places = self._max_partial - budget.num_partial
        # The share of one prompt; the last place, like the last prompt, has all that is left.
        share = budget.left // max(1, min(places, 1 + budget.num_behind))
        if remaining <= share:
            return remaining
        long = remaining > self._long_threshold
        if places < 1 or (long and self._num_long >= self._max_long):
            return 0
        self._num_long += long
        return max(1, share)
