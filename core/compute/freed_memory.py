"""What a CPU's steps free, kept for the next: the same for every framework that asks the C library for memory."""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>


def keep() -> None:
    """Let glibc keep what a step frees: the next one wants the same sizes.

    By its defaults it returns them to the system and faults every page in again. Measured on two cores: a decode step's
    attention over 32 sequences of 256 tokens takes four times as long.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 256 << 20)
