"""How long kernels take on a CUDA device: with nothing in its caches, and recorded as the steps of an engine are."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch

Work = Callable[[], object]


class EventClock:
    """A CUDA device's own, with nothing in its caches. Between runs it writes for longer than a host takes to launch one."""

    WARMUPS, RUNS = 3, 20
    WRITTEN = 512 << 20

    def __init__(self, device: torch.device) -> None:
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        self._memory = torch.empty(max(4 * cache, self.WRITTEN), dtype=torch.uint8, device=device)

    def __call__(self, work: Work) -> float:
        for _ in range(self.WARMUPS):
            work()
        marks = []
        for _ in range(self.RUNS):
            self._memory.zero_()
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            began.record()
            work()
            ended.record()
            marks.append((began, ended))
        torch.cuda.synchronize()
        return float(median(began.elapsed_time(ended) for began, ended in marks)) / 1e3


class Recorder:
    """Records what is to be timed as one CUDA graph. Elsewhere it stays the calls that it is."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __call__(self, work: Work) -> Work:
        """What replays it. Memory that ``work`` was given and did not ask for itself is its caller's to keep."""
        if self._stream is None:
            return work
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            work()  # what is compiled, or set up at first use, is not recorded
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            work()
        return graph.replay
