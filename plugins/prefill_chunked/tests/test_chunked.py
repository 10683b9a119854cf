"""What the contract (``tests/plugins_docs``) leaves open: who gets how much of a step."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from core.interfaces.scheduler import StepBudget
from core.offers import Context
from prefill_chunked.chunked import ChunkedPrefill
from prefill_chunked.plugin import ChunkedSettings, register_schedulers


def deal(policy, prompts, total):
    """What one step grants each prompt, asked as the scheduler asks."""
    budget = StepBudget(total, total)
    granted = []
    for index, remaining in enumerate(prompts):
        budget.num_behind = len(prompts) - index - 1
        tokens = policy.grant(remaining, budget) if budget.left else 0
        budget.left -= tokens
        budget.num_prefills += tokens > 0
        budget.num_partial += 0 < tokens < remaining
        granted.append(tokens)
    return granted


@pytest.mark.parametrize(
    ("prompts", "granted"),
    [
        ([100], [64]),
        ([64], [64]),
        ([10, 100, 10], [10, 54, 0]),
        ([20, 20, 20, 20], [20, 20, 20, 4]),
    ],
)
def test_by_default_the_first_takes_all_that_is_left(prompts, granted):
    assert deal(ChunkedPrefill(long_threshold=8), prompts, 64) == granted


@pytest.mark.parametrize(
    ("prompts", "granted"),
    [
        ([100, 100, 100], [32, 32, 0]),  # two places, two shares
        ([100, 10], [32, 10]),  # the short one need not wait for the long one
        ([100], [64]),  # nobody to share with
        ([20, 100, 100], [20, 22, 22]),
    ],
)
def test_several_partial_prompts_share(prompts, granted):
    assert deal(ChunkedPrefill(max_partial=2, max_long=2, long_threshold=50), prompts, 64) == granted


def test_short_prompts_overtake_a_long_one_too_many():
    policy = ChunkedPrefill(max_partial=3, max_long=1, long_threshold=50)
    assert deal(policy, [100, 100, 30, 100], 66) == [22, 0, 22, 0]
    assert deal(policy, [78, 100], 66) == [33, 0], "a new step counts anew"
    assert not policy.keeps_order


def test_a_long_prompt_that_fits_is_not_counted_as_one_too_many():
    assert deal(ChunkedPrefill(long_threshold=5), [20, 20, 20], 64) == [20, 20, 20]


@pytest.mark.parametrize(("threshold", "remaining", "granted"), [(0, 40, 32), (0, 41, 0), (60, 60, 32), (60, 61, 0)])
def test_long_is_four_percent_of_the_context_or_the_threshold(threshold, remaining, granted):
    (offer,) = register_schedulers()
    section = ChunkedSettings(max_num_partial_prefills=2, long_prefill_token_threshold=threshold)
    policy = offer.create(Context(section=section, settings={"max_model_len": 1000}, facts={}))
    assert deal(policy, [500, remaining], 64) == [32, granted]


def test_more_long_prompts_than_partial_ones_are_refused():
    with pytest.raises(
        ValidationError, match=r"max_long_partial_prefills \(2\) is greater than max_num_partial_prefills \(1\)"
    ):
        ChunkedSettings(max_long_partial_prefills=2)
