"""The capture API of PyTorch on CUDA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from core.interfaces.graph import Outcome
from graph_cuda.graphs import Launch


class TorchCuda:
    """Recording happens on a stream of its own, replaying on whichever is current. Nothing is touched before the first use."""

    def __init__(self) -> None:
        self._own: torch.cuda.Stream | None = None

    @property
    def _stream(self) -> torch.cuda.Stream:
        if self._own is None:
            self._own = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        return self._own

    def pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    def warm(self, launch: Launch, times: int) -> None:
        self._stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(self._stream):
                for _ in range(times):
                    launch()
        except torch.OutOfMemoryError as error:
            raise MemoryError(str(error)) from error
        torch.cuda.current_stream().wait_stream(self._stream)

    def record(self, launch: Launch, pool: Any) -> tuple[Callable[[], None], Outcome]:
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may go on using the device meanwhile: one that copies pages, say.
            with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
                outcome = launch()
        except torch.OutOfMemoryError as error:
            raise MemoryError(str(error)) from error
        tokens = None if outcome.tokens is None else _seen(outcome.tokens)
        return graph.replay, Outcome(_seen(outcome.logits), tokens, outcome.advanced)

    def taken(self) -> int:
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return total - free


class _Memory:
    """A place in a recording's memory, seen and not held: what is recorded next may have it too, since one runs at a time."""

    def __init__(self, tensor: torch.Tensor) -> None:
        kind = {torch.float32: "<f4", torch.int64: "<i8"}[tensor.dtype]
        place = {"data": (tensor.data_ptr(), False), "shape": tuple(tensor.shape), "typestr": kind, "version": 3}
        self.__cuda_array_interface__ = place


def _seen(tensor: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(_Memory(tensor.contiguous()), device=tensor.device)
