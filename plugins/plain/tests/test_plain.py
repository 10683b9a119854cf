"""What the contracts (``tests/plugins_docs``) leave open: how plain these three are."""

from __future__ import annotations

import numpy as np
import pytest

from core.interfaces.cache import PagePool
from core.interfaces.scheduler import StepBudget
from plain.eager import Eager
from plain.private import PrivatePages
from plain.whole import WholePrompts


def test_eager_is_the_step_itself():
    def forward(step):
        return step

    assert Eager().prepare(forward, lambda shape: None) is forward


def test_private_pages_are_free_when_their_request_leaves():
    pool, policy = PagePool(4, 2), PrivatePages()
    policy.attach(pool)
    pages = pool.take(3)
    policy.filled(np.arange(6, dtype=np.int32), pages, 0, "")
    assert policy.find(np.arange(6, dtype=np.int32), "").num_tokens == 0
    policy.leave(pages)
    assert pool.num_free == 4


@pytest.mark.parametrize(("remaining", "left", "granted"), [(10, 10, 10), (10, 11, 10), (11, 10, 0), (1, 1, 1)])
def test_a_prompt_is_granted_whole_or_not_at_all(remaining, left, granted):
    assert WholePrompts().grant(remaining, StepBudget(total=100, left=left)) == granted


def test_nobody_overtakes_a_prompt_that_waits():
    assert WholePrompts.keeps_order
