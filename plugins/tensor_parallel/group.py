"""The ranks over torch.distributed: gloo between processes on CPUs, NCCL between CUDA devices. All on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch._C._distributed_c10d import Backend, FileStore, GatherOptions, Store

from core.errors import EngineDeadError
from core.interfaces.parallel import Collective

MEETING = timedelta(seconds=60)  # every rank has loaded when they meet: what takes longer is broken
PATIENCE = timedelta(hours=1)  # a rank that is gone is noticed at once by other means; a step takes as long as it takes


class Group(Collective):
    """Of its own, beside the one that ``torch.distributed`` keeps for a process: the caller of an ``LLM`` may use that."""

    def __init__(self, rank: int, ranks: int, device: str) -> None:
        self.rank = rank
        self.ranks = ranks
        self._device = device
        self._group: Any = None

    def meet(self, folder: Path) -> None:
        def meeting() -> None:
            store = FileStore(str(folder / "meeting"), self.ranks)  # instead of a port, to which others could come
            store.set_timeout(MEETING)
            self._group = (nccl if self._device == "cuda" else gloo)(store, self.rank, self.ranks)

        self._together(meeting)

    def sum(self, array: Tensor) -> Tensor:
        self._together(lambda: self._met.allreduce([array]).wait())
        return array

    def gather(self, array: Tensor) -> Tensor | None:
        own = array.contiguous()
        parts = [torch.empty_like(own) for _ in range(self.ranks)] if self.rank == 0 else []
        self._together(lambda: self._met.gather([parts] if parts else [], [own], GatherOptions()).wait())
        return torch.cat(parts, 1) if parts else None

    def abort(self) -> None:
        """A connection of gloo's ends with its process; NCCL waits for ever."""
        if self._group is not None and self._device == "cuda":
            self._group.abort()

    def close(self) -> None:
        self.abort()  # the others may be gone
        self._group = None

    @property
    def _met(self) -> Any:
        assert self._group is not None, "the ranks have not met"
        return self._group

    def _together(self, act: Callable[[], object]) -> None:
        try:
            act()
        except RuntimeError as error:
            raise EngineDeadError(f"rank {self.rank} lost the others: {error}") from error


def gloo(store: Store, rank: int, ranks: int) -> Backend:
    """Over the loopback interface: ranks are processes of this machine."""
    kind: Any = dist.ProcessGroupGloo
    options = kind._Options()
    options._devices = [kind.create_device(hostname="127.0.0.1")]
    options._timeout = PATIENCE
    group: Backend = kind(store, rank, ranks, options)
    return group


def nccl(store: Store, rank: int, ranks: int) -> Backend:
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")  # for ranks to find each other; what they compute goes another way
    kind: Any = dist.ProcessGroupNCCL
    options = kind.Options()
    options._timeout = PATIENCE
    group: Backend = kind(store, rank, ranks, options)
    return group
