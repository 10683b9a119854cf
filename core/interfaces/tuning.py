"""Trying out how a backend's operations could be divided on the device that is here: what is asked, and what is found.

A backend whose kernels' best division depends on the device may offer it (``ComputeBackend.tune``). What it finds is a file,
which it takes by itself when it is created the next time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

Clock = Callable[[Callable[[], object]], float]
"""Seconds that what is called takes on the device. It may call it as often as it likes."""


@dataclass(frozen=True)
class Trial:
    """What came of one operation at one number of rows. ``number`` of ``of`` trials, from 1."""

    number: int
    of: int
    operation: str  # for people: "gate_up, 6144 x 1024, bfloat16"
    rows: int
    tried: int
    skipped: tuple[str, ...]  # candidates that did not compile or did not fit, and why
    wrong: tuple[str, ...]  # candidates that gave other numbers than the reference, and how far off: something is broken
    before: float  # seconds with what was in force, of as much of a step as the backend times
    seconds: float  # with what is to be
    found: str  # that, for people


@dataclass(frozen=True)
class Tuning:
    """``rows``: numbers of tokens to try. ``operations``: which, by their names; none is all of them. ``context``: cached
    tokens of a sequence that decodes, in pages of ``page_size``. ``model``: its name, for the file's heading.

    ``clock`` measures instead of the backend's own. ``told`` is called behind each trial.
    """

    rows: Sequence[int]
    context: int
    page_size: int
    model: str
    operations: frozenset[str] = frozenset()
    clock: Clock | None = None
    told: Callable[[Trial], None] = lambda trial: None


@dataclass(frozen=True)
class Tuned:
    """``text``: the file. ``path``: where the backend looks for it when it is created on such a device."""

    text: str
    path: Path
    trials: tuple[Trial, ...]
