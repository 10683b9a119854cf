"""Random numbers keyed by (seed, position, draw): the same request draws the same numbers in any batch, on any backend.

Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC'11), counter
(position low, position high, draw, 0), key (seed low, seed high).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox(seeds: NDArray[np.uint64], positions: NDArray[np.int64], draw: int = 0) -> NDArray[np.uint32]:
    """Four 32-bit words for each (seed, position, draw): uint32 [R, 4]."""
    positions = positions.astype(np.uint64)
    c0 = (positions & _LOW).astype(np.uint32)
    c1 = (positions >> _SHIFT).astype(np.uint32)
    c2 = np.full_like(c0, draw)
    c3 = np.zeros_like(c0)
    k0 = (seeds & _LOW).astype(np.uint32)
    k1 = (seeds >> _SHIFT).astype(np.uint32)
    with np.errstate(over="ignore"):  # the algorithm is arithmetic modulo 2**32
        for _ in range(10):
            p0 = _M0 * c0.astype(np.uint64)
            p1 = _M1 * c2.astype(np.uint64)
            c0, c1, c2, c3 = (
                (p1 >> _SHIFT).astype(np.uint32) ^ c1 ^ k0,
                (p1 & _LOW).astype(np.uint32),
                (p0 >> _SHIFT).astype(np.uint32) ^ c3 ^ k1,
                (p0 & _LOW).astype(np.uint32),
            )
            k0 = k0 + _W0
            k1 = k1 + _W1
    return np.stack([c0, c1, c2, c3], axis=1)


def uniform(seeds: NDArray[np.uint64], positions: NDArray[np.int64], draw: int = 0) -> NDArray[np.float64]:
    """One number in [0, 1) for each (seed, position, draw), with 53 random bits: float64 [R]."""
    words = philox(seeds, positions, draw).astype(np.uint64)
    bits = (words[:, 0] >> np.uint64(5)) * np.uint64(1 << 26) + (words[:, 1] >> np.uint64(6))
    return bits.astype(np.float64) / float(1 << 53)
