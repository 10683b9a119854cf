"""Threads that stay on certain CPUs, where somebody asks for it."""

from __future__ import annotations

import os
from collections.abc import Iterable

from core.errors import UserError
from core.host import cores_among, one_of_each_core

AUTO = "auto"
SETTING = "backend_torch.cpu_affinity"


def cpus(text: str) -> frozenset[int]:
    """The numbers in "0-3,8". :raises ValueError: when it is no such list."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
            raise ValueError(f"{text!r} is neither auto nor a list of CPUs such as 0-3,8")
        found.update(range(int(first), int(last) + 1))
    return frozenset(found)


def listed(numbers: Iterable[int]) -> str:
    """What ``cpus`` reads: "0-3,8"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def named(wanted: str) -> frozenset[int]:
    """The CPUs that are meant, whether or not this process may run on them."""
    return frozenset(one_of_each_core()) if wanted == AUTO else cpus(wanted)


def cores_left(wanted: str | None) -> int | None:
    """Physical cores for threads that stay on these CPUs; None where nothing is said, or nothing can be bound."""
    if wanted is None or not hasattr(os, "sched_setaffinity"):
        return None
    return max(1, cores_among(named(wanted) & os.sched_getaffinity(0)))


def stay_on(wanted: str, threads: int) -> frozenset[int]:
    """Bind this thread, and those that it starts from now on, to CPUs: those named, or one of each physical core.

    :raises UserError: when one of them is not this process's, or they are too few for the threads.
    """
    own = os.sched_getaffinity(0)
    chosen = named(wanted)
    if not chosen <= own:
        raise UserError.of(
            f"this process may not run on CPU {listed(chosen - own)}, only on {listed(own)}",
            SETTING,
            "--cpu-affinity auto",
            f"--cpu-affinity {listed(own)}",
        )
    if len(chosen) < threads:
        raise UserError.of(
            f"{threads} threads are to stay on {len(chosen)} CPUs", SETTING, f"--threads {len(chosen)}", "name more CPUs"
        )
    os.sched_setaffinity(0, chosen)
    return chosen
