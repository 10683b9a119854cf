"""A weight a part at a time, on its way into one matrix: whichever framework's memory that is in."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from core.interfaces.model import Weight
from core.interfaces.quantizer import Packed, Quantizer, packed_chunks


def dense(weight: Weight) -> Iterator[tuple[slice, NDArray[np.generic]]]:
    """(rows of the matrix, what they are), as the checkpoint has them: to be read only, and gone when the weight is placed."""
    first = 0
    for part in weight.parts:
        yield slice(first, first + len(part)), part
        first += len(part)


def unpacked(weight: Weight, quantizer: Quantizer) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """The same of what is left of the values when they have been packed."""
    first = 0
    for packed in packed_chunks(weight, quantizer):
        last = first + packed.shape[0]
        yield slice(first, last), quantizer.unpack(packed)
        first = last


def packed(weight: Weight, quantizer: Quantizer) -> Packed:
    """All of it. Its arrays may be mapped from a file: copy what is kept."""
    return weight.packed or quantizer.stack(list(packed_chunks(weight, quantizer)))
