"""How a projection of a few tokens is divided among programs: data (``sm_90.toml``), and what fits other widths to it."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

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
class Division:
    """How the attention of sequences that decode is divided among programs."""

    keys: int  # at a time
    warps: int
    shortest: int  # keys that are worth a program of their own
    stages: int = 2
    overlap: bool = False


def division(sequences: int) -> Division:
    table = attention()
    most = min((int(key) for key in table if int(key) >= sequences), default=max(map(int, table)))
    return Division(**table[str(most)])


def tiling(role: Role, tokens: int, columns: int, format: str, value_bytes: int = 2) -> Tiling | None:
    """None: too many tokens. ``format``: the bits of a weight as a number, or "fp8"; ``columns``: of the weight.

    ``value_bytes``: of activations.
    """
    table = ways()[format][role]
    most = min((int(key) for key in table if key.isdigit() and int(key) >= tokens), default=None)
    if most is None:
        return None
    row = table[str(most)]
    if row["way"] == "read":
        take = min(2 * row["take"] // value_bytes, max(LANES, power_of_two(columns)))
        rows, overlap = row.get("rows", TILE), row.get("overlap", False)
        return Tiling(rows, row["outputs"], take, dot=True, warps=row["warps"], stages=row["stages"], overlap=overlap)
    held, outputs, warps = row["way"] == "held", row["outputs"], row["warps"]
    pairs = 2 if role in ("qkv", "gate_up") else 1
    while outputs * columns > row["outputs"] * table["columns"] and outputs > (8 if held else 1):
        outputs //= 2
    while outputs * pairs * columns * value_bytes > 4 * HELD * LANES * warps and warps < WARPS:
        warps *= 2
    take = min(row["take"] * warps // row["warps"], power_of_two(columns))
    if outputs * pairs * columns * value_bytes > 4 * HELD * LANES * warps or (held and value_bytes > 2):
        return Tiling(TILE, 16, min(128, max(LANES, power_of_two(columns))), dot=True, warps=4, stages=3)
    early = row.get("early", False) and value_bytes == 2
    if held:
        return Tiling(TILE, outputs, max(TILE * warps, take), dot=True, warps=warps, overlap=True, held=True)
    return Tiling(power_of_two(tokens), outputs, max(LANES, take), dot=False, warps=warps, overlap=True, early=early)


def fixed_tiling(role: Role, columns: int, value_bytes: int = 2) -> Tiling:
    """One for every number of tokens (``deterministic.toml``): no sum depends on how many there are."""
    row = _read("deterministic.toml")[role]
    take = min(2 * row["take"] // value_bytes, max(LANES, power_of_two(columns)))
    return Tiling(row["rows"], row["outputs"], take, dot=True, warps=row["warps"], stages=row["stages"])


def ways() -> dict[str, dict[str, dict[str, Any]]]:
    return {name: table for name, table in _read("sm_90.toml").items() if name != "attention"}


def attention() -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = _read("sm_90.toml")["attention"]
    return table


@cache
def _read(name: str) -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name(name).read_text())


def power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
