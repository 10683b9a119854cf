"""Neighbours that take cores away: one process each, which only counts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

COUNTING = (
    "import os, sys\nif len(sys.argv) > 1: os.sched_setaffinity(0, {int(sys.argv[1])})\nprint(flush=True)\nwhile True: pass"
)


@contextmanager
def busy(cores: int) -> Iterator[None]:
    """So many of the cores that this process may use are busy during the block, the last ones; where the system lets a process
    be bound to one, always the same."""
    own = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    neighbours: list[subprocess.Popen[str]] = []
    try:
        for number in range(cores):
            bound = [str(own[-1 - number % len(own)])] if own else []
            command = [sys.executable, "-c", COUNTING, *bound]
            neighbours.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        for neighbour in neighbours:
            assert neighbour.stdout is not None
            neighbour.stdout.readline()  # it counts
        yield
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.communicate()
