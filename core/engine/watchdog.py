"""A step that does not end: the engine's process says what runs in it, and who asks the engine that it does not answer."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from core.interfaces.engine import UnderWay

log = logging.getLogger("dovetail.engine")

QUIET_SECONDS = 1.0  # the longest that an engine with something to do says nothing before it is asked
FIRST_STEPS = 16
"""Kernels are compiled in them, so that they may take ``PATIENCE`` times as long."""
PATIENCE = 10


class Pulse:
    """Whether an engine in another process answers: it hears what is said to it between two steps only.

    Belongs to the thread that reads the engine's messages; ``trouble`` may be looked at by any.
    """

    def __init__(self, limit: float) -> None:
        """``limit``: seconds; 0: it is never asked."""
        self.trouble = ""
        self._limit = limit
        self._steps = 0
        self._heard = monotonic()
        self._asked: float | None = None

    def heard(self, *, of_step: bool) -> None:
        """It has said something."""
        now = monotonic()
        if self.trouble and self._asked is not None:
            log.warning("the engine answers again after %.1f s", now - self._asked)
        self._heard, self._asked, self.trouble = now, None, ""
        self._steps += of_step

    def feel(self, busy: bool) -> bool:
        """Whether to ask it for something now. ``busy``: somebody waits for what it says."""
        if not self._limit:
            return False
        now = monotonic()
        if self._asked is None:
            if not busy or now - self._heard < min(QUIET_SECONDS, self._limit / 4):
                return False
            self._asked = now
            return True
        limit = self._limit * (PATIENCE if self._steps < FIRST_STEPS else 1)
        if not self.trouble and now - self._asked > limit:
            self.trouble = f"the engine has not answered for more than {limit:g} s: a step of it hangs (--step-timeout)"
            log.error("%s", self.trouble)
        return False


@contextmanager
def telling_of_long_steps(under_way: Callable[[], UnderWay | None], limit: float) -> Iterator[None]:
    """The log has what runs in a step of this thread that takes more than ``limit`` seconds, once a step; 0: in none."""
    ended = threading.Event()
    thread = threading.get_ident()

    def watch() -> None:
        told = 0.0
        while not ended.wait(limit / 4):
            step = under_way()
            if step is None or step.began == told or monotonic() - step.began < limit:
                continue
            told = step.began
            frame = sys._current_frames().get(thread)
            where = "".join(traceback.format_stack(frame)) if frame is not None else ""
            log.error(
                "a step has run for more than %g s (--step-timeout): %d sequences, %d tokens; it is here:\n%s",
                limit,
                step.sequences,
                step.tokens,
                where.rstrip(),
            )

    watcher = threading.Thread(target=watch, name="step-watch", daemon=True)
    if limit:
        watcher.start()
    try:
        yield
    finally:
        ended.set()
        if limit:
            watcher.join()
