"""An engine as those see it who drive it: the loop of its own process, and the offline service. Token ids only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from core.interfaces.limits import RequestLimits
from core.interfaces.request import EngineStats, Request, TokenEvent


class EngineLike(Protocol):
    """``core.engine.engine.Engine`` is one."""

    limits: RequestLimits

    @property
    def has_work(self) -> bool: ...
    def add(self, request: Request) -> None: ...
    def abort(self, request_id: str) -> bool: ...
    def step(self) -> Sequence[TokenEvent]: ...
    def check(self) -> None: ...
    def stats(self) -> EngineStats: ...
    def close(self) -> None: ...
