"""Two ways to divide a pool of KV pages."""

from __future__ import annotations

from core.interfaces.blocks import BlockPolicy, PoolUse


class GlobalBlocks(BlockPolicy):
    """One pool for everybody. A newcomer leaves a page to each running sequence that may grow, so that it is not admitted
    today to preempt somebody, or be preempted, tomorrow.
    """

    def for_admission(self, use: PoolUse) -> int:
        return use.available - use.growing

    def for_growth(self, use: PoolUse) -> int:
        return use.available


class PartitionedBlocks(BlockPolicy):
    """A part of the pool for what is known at admission, and the rest for growth. Neither takes from the other."""

    def __init__(self, ratio: float, ahead: int) -> None:
        """:param ratio: of the pool, for admission; :param ahead: pages of that part given beyond the known tokens."""
        self.ratio = ratio
        self.ahead = ahead

    def for_admission(self, use: PoolUse) -> int:
        return min(use.available, self._part(use) - use.admitted)

    def for_growth(self, use: PoolUse) -> int:
        return min(use.available, use.total - self._part(use) - use.grown)

    def _part(self, use: PoolUse) -> int:
        return int(use.total * self.ratio)
