"""A quantizer: how a weight matrix is packed, what its packed values mean, and where that format can run.

A quantizer describes a *numeric format*, not a kernel: ``pack`` and ``unpack`` define it in numpy, exactly, and are the
reference every fast path is tested against. A backend that has a kernel for the format's ``layout`` uses it; another
multiplies by ``unpack``'s values. On CUDA ``tile`` gives the Triton function by which the backend's fused kernels read it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.interfaces.model import Role, Weight

CHUNK_BYTES = 16 << 20  # of float32 rows that are packed at a time


@dataclass(frozen=True)
class Packed:
    """A packed matrix of canonical shape [out, in]: named arrays that are exactly what memory will hold, plus constants.

    ``constants`` are the format's parameters: the same for every matrix of this shape, whatever its weights.
    """

    shape: tuple[int, int]
    arrays: Mapping[str, NDArray[Any]]
    constants: Mapping[str, int | float | str] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum(int(array.nbytes) for array in self.arrays.values())


class Quantizer(ABC):
    """``layout`` names the arrays' arrangement, for backends that have a kernel for it ("int8_row", "int4_group", ...)."""

    name: str
    layout: str
    roles: frozenset[Role]  # which linears are packed; the others keep the model's dtype

    def of_role(self, role: Role) -> Quantizer:
        """What packs the linears of this role: another quantizer, when a format mixes (a head in more bits than the layers)."""
        return self

    @abstractmethod
    def pack(self, weight: NDArray[np.float32]) -> Packed:
        """Pack rows of a matrix [out, in]. Rows are independent: packing parts and stacking them equals packing the whole.

        :raises UserError: when ``in`` does not fit the format (a group size that does not divide it), with a remedy.
        """

    @abstractmethod
    def unpack(self, packed: Packed) -> NDArray[np.float32]:
        """The values the packed matrix stands for, float32 [out, in]. The definition of the format."""

    @abstractmethod
    def bits_per_weight(self, in_features: int) -> float:
        """Stored bits for each weight of a row this long, scales included; the offer's ``bits`` is only nominal."""

    def stack(self, parts: list[Packed]) -> Packed:
        """Join parts along the output axis. Override when an array's first axis is not the output axis."""
        arrays = {key: np.concatenate([part.arrays[key] for part in parts]) for key in parts[0].arrays}
        rows = sum(part.shape[0] for part in parts)
        return Packed((rows, parts[0].shape[1]), arrays, parts[0].constants)

    def rows(self, packed: Packed, first: int, last: int) -> Packed:
        """Rows ``first`` to ``last`` of a packed matrix, the reverse of ``stack``: override both or neither."""
        arrays = {key: array[first:last] for key, array in packed.arrays.items()}
        return Packed((last - first, packed.shape[1]), arrays, packed.constants)

    def tile(self) -> Any | None:
        """The Triton function that turns a packed tile into values, or None: then CUDA uses ``unpack`` once at load."""
        return None


def packed_chunks(weight: Weight, quantizer: Quantizer) -> Iterator[Packed]:
    """A weight a few rows at a time, so that no matrix ever exists whole in float32: ``stack`` makes one of them.

    What came packed out of its checkpoint is only cut into pieces.
    """
    if weight.packed is not None:
        whole = weight.packed
        step = chunk_rows(whole.shape[1])
        for first in range(0, whole.shape[0], step):
            yield quantizer.rows(whole, first, min(first + step, whole.shape[0]))
    for part in weight.parts:
        step = chunk_rows(part.shape[1])
        for first in range(0, len(part), step):
            yield quantizer.pack(np.ascontiguousarray(part[first : first + step], dtype=np.float32))


def chunk_rows(columns: int) -> int:
    return max(1, CHUNK_BYTES // (4 * columns))
