"""Ctrl-C while a command still imports what it is made of: it ends without a word, as it does everywhere else.

The first thing that a command imports, so it imports next to nothing itself.
"""

from __future__ import annotations

import os
import signal
from typing import Any

INTERRUPTED = 130  # what a shell expects of a program ended by Ctrl-C


class ended_at_once:  # noqa: N801 - used as a function
    """For blocks that only import: nothing has to be put in order, and modules that are half there answer an exception badly.

    A caller who hears Ctrl-C in a way of his own keeps it.
    """

    def __enter__(self) -> None:
        self._heard = False
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            try:
                signal.signal(signal.SIGINT, _end)
                self._heard = True
            except ValueError:  # not the main thread, which alone hears signals
                pass

    def __exit__(self, *_: object) -> None:
        if self._heard:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: Any) -> None:
    os._exit(INTERRUPTED)
