"""How a projection of a few tokens is divided among programs: the fastest of what was tried on an H100, in bfloat16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from core.interfaces.model import Role


@dataclass(frozen=True)
class Tiling:
    """A program takes ``outputs`` rows of the weight (pairs of rows, for qkv and gate_up) and ``columns`` at a time."""

    rows: int  # room for tokens: a power of two
    outputs: int
    columns: int
    dot: bool  # by tensor cores, rather than as sums of products
    warps: int = 4
    stages: int = 2
    overlap: bool = False

    @property
    def constants(self) -> dict[str, Any]:
        return {"ROWS": self.rows, "OUTPUTS": self.outputs, "COLUMNS": self.columns, "DOT": self.dot, "OVERLAP": self.overlap}

    @property
    def options(self) -> dict[str, Any]:
        return {"num_warps": self.warps, "num_stages": self.stages, "launch_pdl": self.overlap}


MOST_ROWS = 16  # of a tensor core's tile; for more tokens cuBLAS is as fast
MOST_COLUMNS = 4096  # that a program holds at once
LANES = 32

SUMS: dict[Role, dict[int, tuple[int, int]]] = {
    "qkv": {1: (2, 2), 2: (2, 4), 4: (2, 4)},
    "o": {1: (8, 8), 2: (8, 4), 4: (8, 4)},
    "gate_up": {1: (8, 4)},
    "down": {1: (4, 4), 2: (4, 4), 4: (4, 4)},
    "head": {1: (16, 4)},
}
"""By what is projected and for how many tokens: outputs and warps of programs that add up products, all columns at once."""
DOTS: dict[Role, tuple[int, int, int, int]] = {
    "qkv": (16, 256, 4, 3),
    "o": (8, 256, 1, 3),
    "gate_up": (32, 256, 4, 3),
    "down": (8, 256, 1, 3),
    "head": (32, 256, 4, 3),
}
"""Outputs, columns, warps and stages where tensor cores do it."""
PACKED = (4, 8)
"""Outputs and warps of up to 8 tokens where weights are packed: on their way to tensor cores they would be unpacked slowly."""


def tiling(role: Role, tokens: int, columns: int, *, packed: bool = False) -> Tiling | None:
    """None: too many tokens. ``columns``: of the weight; ``packed``: whether it is."""
    if tokens > MOST_ROWS:
        return None
    rows, whole = power_of_two(tokens), power_of_two(columns)
    sums = SUMS[role].get(rows, PACKED if packed and rows < MOST_ROWS else None)
    if sums is not None and whole <= MOST_COLUMNS:
        return Tiling(rows, sums[0], max(LANES, whole), dot=False, warps=sums[1])
    outputs, width, warps, stages = DOTS[role]
    return Tiling(MOST_ROWS, outputs, min(width, max(LANES, whole)), dot=True, warps=warps, stages=stages)


def power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
