"""How many pages each policy gives, and that an engine under either gives everybody the same tokens."""

import pytest

from core.interfaces.blocks import PoolUse
from kv_blocks.policies import GlobalBlocks, PartitionedBlocks


def test_global_leaves_a_page_to_everybody_who_may_grow():
    use = PoolUse(total=100, available=30, grown=20, growing=8)
    assert GlobalBlocks().for_admission(use) == 22
    assert GlobalBlocks().for_growth(use) == 30


@pytest.mark.parametrize(
    ("available", "grown", "admission", "growth"),
    [
        (100, 0, 75, 25),
        (40, 20, 35, 5),  # 40 admitted
        (40, 25, 40, 0),  # growth has had its part; newcomers have 40 left of theirs and find 40
        (25, 0, 0, 25),
        (10, 20, 5, 5),
        (2, 24, 1, 1),
    ],
)
def test_partitioned_keeps_both_parts_apart(available, grown, admission, growth):
    use = PoolUse(total=100, available=available, grown=grown, growing=50)
    policy = PartitionedBlocks(0.75, 2)
    assert (policy.for_admission(use), policy.for_growth(use)) == (admission, growth)


def test_a_share_that_is_no_whole_number_of_pages_leaves_the_rest_to_growth():
    policy = PartitionedBlocks(0.75, 0)
    assert policy.for_admission(PoolUse(7, 7)) == 5
    assert policy.for_growth(PoolUse(7, 7)) == 2
