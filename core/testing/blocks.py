"""The contract of block policies: nothing is given that is not there, and what is given back can be given again."""

from __future__ import annotations

import numpy as np

from core.interfaces.blocks import BlockPolicy, PoolUse
from core.testing.contract import Contract


class BlockPolicyContract(Contract, kit=True):
    """Give ``make``. ``smallest``: the least number of pages a pool must have for your policy to admit anybody."""

    smallest: int = 4

    def make(self) -> BlockPolicy:
        """A new policy, as your offer's ``create`` makes it."""
        raise NotImplementedError(f"{type(self).__name__} must define make()")

    # --- what is promised -------------------------------------------------------------------------------------------

    def test_nothing_is_given_that_is_not_there(self) -> None:
        policy = self.make()
        for use in uses(self.smallest):
            for name in ("for_admission", "for_growth"):
                given = getattr(policy, name)(use)
                assert isinstance(given, int)
                assert given <= use.available, f"{name} gives {given} pages with {use}"

    def test_pages_ahead_are_a_number_of_pages(self) -> None:
        policy = self.make()
        assert isinstance(policy.ahead, int)
        assert policy.ahead >= 0

    def test_an_idle_pool_admits_somebody(self) -> None:
        policy = self.make()
        for total in (self.smallest, 100, 40_000):
            assert policy.for_admission(PoolUse(total, total)) > 0, f"nobody is ever admitted to {total} pages"

    def test_answers_hang_on_the_pool_alone(self) -> None:
        policy = self.make()
        asked = list(uses(self.smallest))
        answers = [(policy.for_admission(use), policy.for_growth(use)) for use in asked]
        again = [(policy.for_admission(use), policy.for_growth(use)) for use in reversed(asked)]
        assert answers == again[::-1], "the same pool got another answer when it was asked about again"

    def test_pages_given_back_can_be_given_again(self) -> None:
        policy = self.make()
        for use in uses(self.smallest):
            if use.admitted:
                freed = PoolUse(use.total, use.available + 1, use.grown, use.growing)
                assert policy.for_admission(freed) >= policy.for_admission(use), f"a free page more, and fewer given: {use}"
            if use.grown:
                freed = PoolUse(use.total, use.available + 1, use.grown - 1, use.growing)
                assert policy.for_growth(freed) >= policy.for_growth(use), f"a free page more, and fewer given: {use}"


def uses(smallest: int) -> list[PoolUse]:
    """States that a pool can be in."""
    random = np.random.default_rng(3)
    states = []
    for _ in range(500):
        total = int(random.integers(smallest, 2000))
        admitted = int(random.integers(0, total + 1))
        grown = int(random.integers(0, total - admitted + 1))
        states.append(PoolUse(total, total - admitted - grown, grown, int(random.integers(0, 64))))
    return states
