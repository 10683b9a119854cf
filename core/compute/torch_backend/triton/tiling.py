"""How a step's kernels are divided among programs: one row of a table (``tables.py``), fitted to a weight's width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from core.interfaces.model import Role

TILE = 16  # the fewest tokens that tensor cores multiply
LANES = 32
WARPS = 8  # of a program, at most
HELD = 128  # registers of a lane that may be full of weights


@dataclass(frozen=True)
class Tiling:
    """A program takes ``outputs`` rows of the weight (pairs of rows, for qkv and gate_up) and ``columns`` at a time."""

    rows: int  # room for tokens, a power of two; of tensor cores' tiles there may be several
    outputs: int
    columns: int
    dot: bool  # by tensor cores, rather than as sums of products
    warps: int = 4
    stages: int = 2
    overlap: bool = False
    held: bool = False  # by tensor cores, with all of its weights in registers, a part of the columns to each warp
    early: bool = False  # packed weights become 16-bit values while the token is awaited

    def grid(self, outputs: int, tokens: int) -> tuple[int, int]:
        return -(-outputs // self.outputs), -(-tokens // self.rows)

    @property
    def constants(self) -> dict[str, Any]:
        sizes = {"ROWS": self.rows, "OUTPUTS": self.outputs, "COLUMNS": self.columns}
        parts = self.warps if self.held else 0
        return sizes | {"DOT": self.dot, "PARTS": parts, "OVERLAP": self.overlap, "EARLY": self.early}

    @property
    def options(self) -> dict[str, Any]:
        return {"num_warps": self.warps, "num_stages": self.stages, "launch_pdl": self.overlap}


@dataclass(frozen=True)
class Way:
    """A row of a table: as a projection of 16-bit activations is divided, at the width that was tried.

    "library": as for more tokens than the table has, by kernels for many of them.
    """

    way: Literal["sums", "held", "read", "library"]
    outputs: int = TILE
    take: int = LANES  # columns at a time
    warps: int = 4
    stages: int = 2
    rows: int = TILE
    overlap: bool = False
    early: bool = False


@dataclass(frozen=True)
class Ways:
    """Of one role and format. ``columns``: of the weight that was tried; ``rows``: for up to so many tokens, fewest first."""

    columns: int
    rows: tuple[tuple[int, Way], ...]


@dataclass(frozen=True)
class Division:
    """How the attention of sequences that decode is divided among programs."""

    keys: int  # at a time
    warps: int
    shortest: int  # keys that are worth a program of their own
    stages: int = 2
    overlap: bool = False
    programs: int = 2  # of a processor, at most, where contexts are divided


@dataclass(frozen=True)
class Table:
    """``origin``: what it is, for people."""

    ways: Mapping[str, Mapping[str, Ways]]  # format -> role -> rows
    attention: tuple[tuple[int, Division], ...]  # for up to so many sequences, fewest first
    origin: str


def division(table: Table, sequences: int) -> Division:
    """Behind the largest number, as for it."""
    return next((how for most, how in table.attention if most >= sequences), table.attention[-1][1])


def tiling(table: Table, role: Role, tokens: int, columns: int, format: str, value_bytes: int = 2) -> Tiling | None:
    """None: too many tokens. ``format``: the bits of a weight as a number, or "fp8"; ``columns``: of the weight.

    ``value_bytes``: of activations.
    """
    ways = table.ways[format][role]
    way = next((way for most, way in ways.rows if most >= tokens), None)
    return None if way is None else fitted(way, ways.columns, role, tokens, columns, value_bytes)


def fitted(way: Way, tried: int, role: Role, tokens: int, columns: int, value_bytes: int = 2) -> Tiling | None:
    """What was found for ``tried`` columns, within a lane's registers for as many as there are."""
    if way.way == "library":
        return None
    if way.way == "read":
        take = min(2 * way.take // value_bytes, max(LANES, power_of_two(columns)))
        return Tiling(way.rows, way.outputs, take, dot=True, warps=way.warps, stages=way.stages, overlap=way.overlap)
    held, outputs, warps = way.way == "held", way.outputs, way.warps
    pairs = 2 if role in ("qkv", "gate_up") else 1
    while outputs * columns > way.outputs * tried and outputs > (8 if held else 1):
        outputs //= 2
    while outputs * pairs * columns * value_bytes > 4 * HELD * LANES * warps and warps < WARPS:
        warps *= 2
    take = min(way.take * warps // way.warps, power_of_two(columns))
    if outputs * pairs * columns * value_bytes > 4 * HELD * LANES * warps or (held and value_bytes > 2):
        return Tiling(TILE, 16, min(128, max(LANES, power_of_two(columns))), dot=True, warps=4, stages=3)
    early = way.early and value_bytes == 2
    if held:
        return Tiling(TILE, outputs, max(TILE * warps, take), dot=True, warps=warps, overlap=True, held=True)
    return Tiling(power_of_two(tokens), outputs, max(LANES, take), dot=False, warps=warps, overlap=True, early=early)


def power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
