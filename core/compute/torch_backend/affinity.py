"""Threads that stay on certain CPUs, where somebody asks for it."""

from __future__ import annotations

import os

from core.errors import UserError
from core.host import one_of_each_core

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


def stay_on(wanted: str, threads: int) -> frozenset[int]:
    """Bind this thread, and those that it starts from now on, to CPUs: those named, or one of each physical core.

    :raises UserError: when one of them is not this process's, or they are too few for the threads.
    """
    own = os.sched_getaffinity(0)
    chosen = frozenset(one_of_each_core()) if wanted == AUTO else cpus(wanted)
    if not chosen <= own:
        others = ", ".join(map(str, sorted(chosen - own)))
        raise UserError.of(
            f"this process may not run on CPU {others}, only on {', '.join(map(str, sorted(own)))}",
            SETTING,
            "--cpu-affinity auto, or a list of those",
        )
    if len(chosen) < threads:
        raise UserError.of(
            f"{threads} threads are to stay on {len(chosen)} CPUs", SETTING, f"--threads {len(chosen)}", "name more CPUs"
        )
    os.sched_setaffinity(0, chosen)
    return chosen
