"""Importing Paddle: what it has to be told before, and what of a process it leaves as it was."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

THREADS = "OMP_NUM_THREADS"
PRODUCTS = "MKL_DEBUG_CPU_TYPE"
AVX2 = "5"
CPUS = Path("/proc/cpuinfo")


@contextmanager
def imported_quietly() -> Iterator[None]:
    """Around the import. Paddle changes the environment, warns on standard error where the number of threads is in it, and adds
    a handler to the root of all logs, by which every line would be told twice.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    threads = os.environ.pop(THREADS, None)  # the backend says how many
    if has_avx2_of_another_vendor():
        os.environ.setdefault(PRODUCTS, AVX2)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No ccache found")  # of use to those who compile operators
            yield
    finally:
        os.environ.pop(THREADS, None)
        if threads is not None:
            os.environ[THREADS] = threads
        root.handlers[:] = handlers
        root.setLevel(level)


def has_avx2_of_another_vendor() -> bool:
    """Whether this CPU has AVX2 and another vendor than Intel.

    The MKL that Paddle brings asks for the vendor first: elsewhere it multiplies by SSE, 2.4 times as slowly, unless told.
    """
    try:
        lines = CPUS.read_text().splitlines()
    except OSError:
        return False
    said = {key.strip(): value.split() for key, _, value in (line.partition(":") for line in lines)}
    return "avx2" in said.get("flags", ()) and said.get("vendor_id") != ["GenuineIntel"]
