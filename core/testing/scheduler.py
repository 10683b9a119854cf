"""The contract of scheduling policies: no budget is overdrawn, and everybody's turn comes."""

from __future__ import annotations

import copy
import math

import numpy as np

from core.interfaces.request import Request, SamplingParams
from core.interfaces.scheduler import SchedulingPolicy, StepBudget
from core.testing.contract import Contract


class SchedulerContract(Contract, kit=True):
    """Give ``make`` and ``splits_prompts``, as your offer says it.

    A policy is asked only while something of the step is left: ``budget.left`` is at least 1.
    """

    splits_prompts: bool

    def make(self) -> SchedulingPolicy:
        """A new policy, as your offer's ``create`` makes it."""
        raise NotImplementedError(f"{type(self).__name__} must define make()")

    # --- what is promised -------------------------------------------------------------------------------------------

    def test_order_is_a_sort_key(self) -> None:
        policy = self.make()
        requests = [request(f"r{n}", prompt=1 + n * 37 % 500, priority=n % 3 - 1, arrived=n / 10) for n in range(50)]
        keys = [policy.order(each) for each in requests]
        for key in keys:
            assert isinstance(key, tuple)
            assert all(math.isfinite(part) for part in key), "a sort key is made of finite numbers"
        assert len({len(key) for key in keys}) == 1, "sort keys of different length do not compare"
        assert [policy.order(each) for each in reversed(requests)] == keys[::-1], (
            "the key of a request depends on who was asked before"
        )

    def test_a_lower_priority_number_runs_earlier(self) -> None:
        policy = self.make()
        first, second = (request("r", prompt=20, priority=priority, arrived=1.0) for priority in (-1, 1))
        assert policy.order(first) < policy.order(second)

    def test_grants_stay_within_the_budget(self) -> None:
        policy = self.make()
        random = np.random.default_rng(7)
        for _ in range(2000):
            budget, remaining = random_budget(random), int(random.integers(1, 5000))
            before = copy.copy(budget)
            granted = policy.grant(remaining, budget)
            assert isinstance(granted, int)
            assert 0 <= granted <= min(remaining, budget.left), f"{granted} of {remaining} tokens granted with {budget}"
            assert budget == before, "grant() changed the budget; the scheduler keeps the books"
            if not self.splits_prompts:
                assert granted in (0, remaining), f"{granted} of {remaining} tokens granted, yet prompts are not split"

    def test_an_empty_step_is_not_wasted(self) -> None:
        policy = self.make()
        for total in (1, 7, 64, 8192):
            assert policy.grant(total, StepBudget(total, total)) > 0, (
                f"a prompt of {total} tokens waits though a step of {total} is empty"
            )

    def test_a_long_prompt_is_computed_in_the_end(self) -> None:
        """Split over steps, if prompts are split; a prompt that fits one step runs in one, if they are not."""
        policy = self.make()
        remaining = 10_000 if self.splits_prompts else 512
        for _ in range(10_000):
            remaining -= policy.grant(remaining, StepBudget(512, 512))
            if remaining == 0:
                return
        raise AssertionError(f"{remaining} tokens are left after 10000 empty steps")

    def test_everybody_finishes(self) -> None:
        """A queue of requests of all lengths, stepped as the engine steps it, comes to its end."""
        policy = self.make()
        random = np.random.default_rng(3)
        total = 256
        longest = 2000 if self.splits_prompts else total
        waiting = [
            request(f"r{n}", prompt=int(random.integers(1, longest + 1)), priority=int(random.integers(3)), arrived=float(n))
            for n in range(60)
        ]
        waiting.sort(key=policy.order)
        decoding: list[int] = []  # tokens that each still generates
        # In order: [tokens left of the prompt, tokens to generate]. All are admitted at once; budgets are what they share.
        prompts = [[len(each.prompt_token_ids), int(each.params.max_tokens or 1)] for each in waiting]
        for _ in range(20_000):
            budget = StepBudget(total, total - len(decoding), num_decodes=len(decoding))
            decoding = [output - 1 for output in decoding if output > 1]
            unfinished: list[list[int]] = []
            blocked = False
            for index, (left, output) in enumerate(prompts):
                budget.num_behind = len(prompts) - index - 1
                granted = policy.grant(left, budget) if budget.left > 0 and not blocked else 0
                blocked |= granted == 0 and policy.keeps_order
                budget.left -= granted
                budget.num_prefills += granted > 0
                budget.num_partial += 0 < granted < left
                if granted < left:
                    unfinished.append([left - granted, output])
                else:
                    decoding.append(output)
            prompts = unfinished
            if not (prompts or decoding):
                return
        raise AssertionError(
            f"{len(prompts)} prompts are not computed after 20000 steps, {prompts[0][0]} tokens of the first are left"
        )


def request(name: str, *, prompt: int, priority: int, arrived: float) -> Request:
    return Request(
        request_id=name, prompt_token_ids=[5] * prompt, params=SamplingParams(max_tokens=20), priority=priority, arrived=arrived
    )


def random_budget(random: np.random.Generator) -> StepBudget:
    total = int(random.integers(1, 4096))
    left = int(random.integers(1, total + 1))
    prefills = int(random.integers(0, 4))
    return StepBudget(
        total,
        left,
        num_decodes=int(random.integers(0, 100)),
        num_prefills=prefills,
        num_partial=int(random.integers(0, prefills + 1)),
        num_behind=int(random.integers(0, 5)),
    )
