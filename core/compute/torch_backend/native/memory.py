"""Memory for weights in huge pages: two cores then read 57 to 65 GB/s where small pages gave them 33 to 39."""

from __future__ import annotations

import mmap
from contextlib import suppress
from math import prod

import torch
from torch import Tensor

HUGE = 2 << 20
CHUNK = 64 << 20  # taken from the system at a time; what does not fit a chunk has one of its own
ALIGNMENT = 64


class HugePages:
    """Tensors one behind the other in large pieces of memory, which lives as long as any of them."""

    def __init__(self) -> None:
        self._chunk = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """:raises MemoryError: when the system has none left."""
        wanted = -(-prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        if wanted > len(self._chunk) - self._used:
            self._chunk, self._used = _chunk(max(CHUNK, wanted)), 0
        own = self._chunk[self._used : self._used + prod(shape) * dtype.itemsize]
        self._used += wanted
        return own.view(dtype).view(shape)


def _chunk(size: int) -> Tensor:
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    try:
        memory = mmap.mmap(-1, size + HUGE, **private)
    except OSError as error:
        raise MemoryError(str(error)) from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them: small pages do too
            memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    return whole[-whole.data_ptr() % HUGE :][:size]
