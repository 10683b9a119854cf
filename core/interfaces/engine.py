"""An engine as those see it who drive it: the loop of its own process, and the offline service. Token ids only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from core.errors import RequestError
from core.interfaces.limits import RequestLimits
from core.interfaces.request import EngineStats, Request, TokenEvent, TokenLogprobs


@dataclass(frozen=True)
class Answer:
    """What has come of a request besides tokens. One whose prompt is read gives a ``state`` [H], or ``logprobs``; ``error``:
    after it was added, it was found that it cannot be had.
    """

    request_id: str
    error: RequestError | None = None
    state: NDArray[np.float32] | None = None
    logprobs: list[TokenLogprobs] | None = None


@dataclass(frozen=True, eq=False)
class UnderWay:
    """A step that has not ended. ``began``: on the ``time.monotonic`` clock."""

    began: float
    sequences: int = 0  # 0: what it computes is not chosen yet
    tokens: int = 0


class EngineLike(Protocol):
    """``core.engine.engine.Engine`` is one."""

    limits: RequestLimits

    @property
    def has_work(self) -> bool: ...
    @property
    def under_way(self) -> UnderWay | None: ...  # asked for by another thread
    def add(self, request: Request) -> None: ...
    def abort(self, request_id: str) -> bool: ...
    def step(self) -> Sequence[TokenEvent]: ...
    def answers(self) -> Sequence[Answer]: ...
    def check(self) -> None: ...
    def stats(self) -> EngineStats: ...
    def close(self) -> None: ...
