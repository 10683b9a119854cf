"""Divisions worth trying, for one weight and number of tokens. Which of them compile and fit is seen when they are tried."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from core.compute.torch_backend.triton.tiling import TILE, Division, Table, Tiling, Way, division, fitted, tiling
from core.interfaces.model import Role

MOST = 64  # tokens, behind which kernels for many of them are not tried against
SUMS = 4  # tokens that are multiplied one by one
HELD = range(3, 33)
TAKEN_BY_LANES = ((256, 1), (512, 1), (1024, 1), (512, 2), (1024, 2), (1024, 4))  # columns at a time, warps
TAKEN_BY_WARPS = ((256, 4), (512, 4), (512, 8))
LIBRARY = Way("library")
FEW = 32  # sequences, which leave processors without work unless their contexts are cut small
LEAST, FILLING = 2, 32  # programs of a processor


def ways(table: Table, role: Role, tokens: int, columns: int, format: str, value_bytes: int) -> list[Way]:
    """What is in force first, as it is fitted to so many columns; of those that come to the same one."""
    present = tiling(table, role, tokens, columns, format, value_bytes)
    overlap = present is not None and present.overlap  # the other way is for finalists
    found: dict[Tiling | None, Way] = {present: row_of(present, value_bytes)}
    for way in _imagined(format, tokens, value_bytes, overlap):
        found.setdefault(fitted(way, columns, role, tokens, columns, value_bytes), way)
    return list(found.values())


def row_of(way: Tiling | None, value_bytes: int) -> Way:
    """The row of a table that ``fitted`` makes this of, at the width it was made for."""
    if way is None:
        return LIBRARY
    if not way.dot:
        return Way("sums", way.outputs, way.columns, way.warps, early=way.early)
    if way.held:
        return Way("held", way.outputs, way.columns, way.warps)
    take = way.columns * value_bytes // 2
    return Way("read", way.outputs, take, way.warps, way.stages, way.rows, way.overlap)


def _imagined(format: str, tokens: int, value_bytes: int, overlap: bool) -> Iterator[Way]:
    yield LIBRARY
    if tokens <= SUMS:
        early = (False, True) if format in ("8", "4") and value_bytes == 2 else (False,)
        for outputs, (take, warps), at_once in product((1, 2, 4), TAKEN_BY_LANES, early):
            yield Way("sums", outputs, take, warps, early=at_once)
    if tokens in HELD and format != "fp8" and value_bytes == 2:  # fp8's tokens are rounded, which is done where they are read
        for outputs, (take, warps) in product((8, 16), TAKEN_BY_WARPS):
            yield Way("held", outputs, take, warps)
    if tokens > 2:
        for rows in (TILE, 2 * TILE, 4 * TILE):
            if rows == TILE or rows < 2 * tokens:
                for outputs, take, stages in product((16, 32, 64), (128, 256), (2, 3)):
                    yield Way("read", outputs, take, 4, stages, rows, overlap)


def divisions(table: Table, sequences: int) -> list[Division]:
    """What is in force first."""
    present = division(table, sequences)
    found = dict.fromkeys([present])
    if sequences > FEW:  # there are programs enough: they should be alike, and no longer than it takes to fill the device
        for keys, warps, shortest, stages in product((32, 64), (1, 2, 4), (256, 512), (2, 3)):
            found[replace(present, keys=keys, warps=warps, shortest=shortest, stages=stages, programs=FILLING)] = None
        return list(found)
    for keys, warps, shortest, stages in product((32, 64, 128), (2, 4, 8), (64, 128), (2, 3)):
        if stages == 2 or keys == 64:
            found[replace(present, keys=keys, warps=warps, shortest=shortest, stages=stages, programs=LEAST)] = None
    return list(found)
