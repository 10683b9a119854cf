"""What this process may use of the machine it runs on, the limits of its container included."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Physical cores among the logical ones that this process may run on, at most what its container is allowed."""
    import psutil

    if not hasattr(os, "sched_getaffinity"):
        return psutil.cpu_count(logical=False) or 1
    siblings = one_of_each_core()
    quota, _, period = _read(_CGROUP / "cpu.max").partition(" ")
    allowed = -(-int(quota) // int(period)) if quota.isdigit() and period.isdigit() else len(siblings)
    return max(1, min(len(siblings), allowed))


def one_of_each_core() -> list[int]:
    """A logical CPU of each physical core that this process may run on. Linux alone says which they are."""
    return list({_siblings(cpu): cpu for cpu in sorted(os.sched_getaffinity(0), reverse=True)}.values())


def cores_among(cpus: Iterable[int]) -> int:
    """Physical cores that these logical CPUs belong to."""
    return len({_siblings(cpu) for cpu in cpus})


def free_and_total_memory() -> tuple[int, int]:
    """In bytes."""
    import psutil

    memory = psutil.virtual_memory()
    free, total = int(memory.available), int(memory.total)
    limit = _cgroup_number("memory.max")
    if limit is not None and limit < total:
        # Mapped checkpoint files count as used by the container, yet the system drops them as soon as memory is wanted.
        used = (_cgroup_number("memory.current") or 0) - _droppable()
        free, total = min(free, max(0, limit - used)), limit
    return free, total


def _siblings(cpu: int) -> str:
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
