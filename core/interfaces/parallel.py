"""A decoder split over several ranks, each a process with a device of its own: how they put their parts together.

Every rank runs the same steps on its shard of the weights (``core.models.shard``). Where a product's columns are split, each
has a partial sum, and ``sum`` makes it whole; where its rows are, each has some of the results, and ``gather`` brings them to
rank 0, which alone samples. All ranks make the same calls in the same order: a call waits for every other rank.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from core.interfaces.compute import Array


class Collective(ABC):
    """The ranks as one of them sees the others. Made in each rank's process; arrays are those of the compute backend.

    Every method raises ``EngineDeadError`` when a rank is gone: what the others hold is of no use then.
    """

    rank: int
    ranks: int

    @abstractmethod
    def meet(self, folder: Path) -> None:
        """Find the others and wait for them. Called once, before all else, when every rank has loaded its weights.

        :param folder: one that only the ranks of this server have, empty at first.
        """

    @abstractmethod
    def sum(self, array: Array) -> Array:
        """The sum over all ranks, the same bits on each; may use the memory of ``array``."""

    @abstractmethod
    def gather(self, array: Array) -> Array | None:
        """On rank 0 every rank's array [R, n] side by side, [R, ranks * n], in the order of ranks; None on the others."""

    def abort(self) -> None:  # noqa: B027 - most notice by themselves that a rank is gone
        """Called from another thread when a rank is gone: a call that waits for it ends with an error."""

    def close(self) -> None:  # noqa: B027
        """The ranks part. Called once on each; waits for nobody."""
