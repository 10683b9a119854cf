"""What this process may use of the machine, limits of containers included; and what to say when memory runs out."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from core.errors import UserError

_CGROUP = Path("/sys/fs/cgroup")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>


def free_and_total(device: torch.device) -> tuple[int, int]:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    memory = psutil.virtual_memory()
    free, total = int(memory.available), int(memory.total)
    limit = _cgroup_number("memory.max")
    if limit is not None and limit < total:
        # Mapped checkpoint files count as used by the container, yet the system drops them as soon as memory is wanted.
        used = (_cgroup_number("memory.current") or 0) - _droppable()
        free, total = min(free, max(0, limit - used)), limit
    return free, total


def usable_cores() -> int:
    """Physical cores among the logical ones that this process may run on, at most what its container is allowed."""
    if not hasattr(os, "sched_getaffinity"):
        return psutil.cpu_count(logical=False) or 1
    siblings = {_first_sibling(cpu) for cpu in os.sched_getaffinity(0)}
    quota, _, period = _read(_CGROUP / "cpu.max").partition(" ")
    allowed = -(-int(quota) // int(period)) if quota.isdigit() and period.isdigit() else len(siblings)
    return max(1, min(len(siblings), allowed))


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees: the next one wants the same sizes.

    By its defaults it returns them to the system and faults every page in again. Measured on two cores: a decode step's
    attention over 32 sequences of 256 tokens takes four times as long.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 256 << 20)


@contextmanager
def memory_for(what: str, *remedies: str) -> Iterator[None]:
    """Tell the user what did not fit, and what to do, instead of showing an allocator's traceback."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise UserError.of(f"there is not enough memory for {what}", "", *remedies) from error
    except RuntimeError as error:
        if "allocate" not in str(error):
            raise
        raise UserError.of(f"there is not enough memory for {what}", "", *remedies) from error


def _first_sibling(cpu: int) -> str:
    return _read(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")) or str(cpu)


def _droppable() -> int:
    lines = (line.split() for line in _read(_CGROUP / "memory.stat").splitlines())
    return next((int(line[1]) for line in lines if line[:1] == ["inactive_file"]), 0)


def _cgroup_number(name: str) -> int | None:
    text = _read(_CGROUP / name)
    return int(text) if text.isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
