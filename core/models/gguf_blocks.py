"""Formats that most GGUF files are in, unpacked here: faster than by the ``gguf`` package, whose import takes a while too.

The values are that package's to the last bit. Every other format is left to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

VALUES = 32  # in a block
AT_A_TIME = 1024  # blocks: what comes of them stays in a core's own cache until all is done to it
HALVES = np.dtype("V16")  # the low four bits of these bytes are a block's first sixteen values, the high ones its last
LOW = np.uint64(0x0F0F0F0F0F0F0F0F)
Blocks: TypeAlias = NDArray[Any]  # structured
Unpack: TypeAlias = Callable[[Blocks, NDArray[np.float32]], None]


def four_bits(codes: NDArray[Any], values: NDArray[np.float32]) -> None:
    both = np.ascontiguousarray(codes).view(np.uint64)
    unsigned = np.empty(values.shape, np.uint8)
    halves = unsigned.view(HALVES)
    halves[:, 0] = (both & LOW).view(HALVES)
    halves[:, 1] = (both >> np.uint64(4) & LOW).view(HALVES)
    np.copyto(values, unsigned)


def q4_0(blocks: Blocks, values: NDArray[np.float32]) -> None:
    four_bits(blocks["codes"], values)
    values -= np.float32(8)
    values *= wide(blocks["scale"])


def q4_1(blocks: Blocks, values: NDArray[np.float32]) -> None:
    four_bits(blocks["codes"], values)
    values *= wide(blocks["scale"])
    values += wide(blocks["least"])


def q8_0(blocks: Blocks, values: NDArray[np.float32]) -> None:
    np.copyto(values, blocks["codes"])
    values *= wide(blocks["scale"])


def wide(halves: NDArray[Any]) -> NDArray[np.float32]:
    return halves.astype(np.float32)[:, None]


FORMATS: dict[int, tuple[np.dtype[Any], Unpack]] = {
    2: (np.dtype([("scale", "<f2"), ("codes", HALVES)]), q4_0),
    3: (np.dtype([("scale", "<f2"), ("least", "<f2"), ("codes", HALVES)]), q4_1),
    8: (np.dtype([("scale", "<f2"), ("codes", "i1", (VALUES,))]), q8_0),
}
"""By GGUF's number: how a block lies in the file, and what makes values [blocks, VALUES] of such."""


def unpack(kind: int, raw: NDArray[np.uint8], values: NDArray[np.float32]) -> None:
    """Whole blocks of one of FORMATS, to as many values, which lie side by side."""
    block, into = FORMATS[kind]
    blocks, values = raw.view(block), values.reshape(-1, VALUES)
    for first in range(0, len(blocks), AT_A_TIME):
        part = slice(first, first + AT_A_TIME)
        into(blocks[part], values[part])
