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
    """``layout`` names the arrays' arrangement, for backends that have a kernel for it ("int8_row", "int4_group", ...).

    ``rows_together``: rows that share something (the scale of a block) come in blocks of this many, counted from the first row
    of the matrix that is placed: over the seams of its parts, so that a block may hold the last of q and the first of k; the
    last block has what is left. A rank of several counts from the first row of its own. Who packs, stacks or cuts a matrix in
    pieces does so in whole blocks, all but the last piece: ``packed_chunks`` does.
    """

    name: str
    layout: str
    roles: frozenset[Role]  # which linears are packed; the others keep the model's dtype
    rows_together: int = 1

    def of_role(self, role: Role) -> Quantizer:
        """What packs the linears of this role: another quantizer, when a format mixes (a head in more bits than the layers)."""
        return self

    @abstractmethod
    def pack(self, weight: NDArray[np.float32]) -> Packed:
        """Pack rows of a matrix [out, in]. Blocks of rows are independent: packing pieces of whole blocks and stacking them
        equals packing the whole.

        :raises UserError: when ``in`` does not fit the format (a group size that does not divide it), with a remedy.
        """

    @abstractmethod
    def unpack(self, packed: Packed) -> NDArray[np.float32]:
        """The values the packed matrix stands for, float32 [out, in]. The definition of the format."""

    @abstractmethod
    def bits_per_weight(self, in_features: int) -> float:
        """Stored bits for each weight of a row this long, scales included; the offer's ``bits`` is only nominal."""

    def stack(self, parts: list[Packed]) -> Packed:
        """Join parts along the output axis. Override when an array's first axis is neither the output axis nor that of blocks.

        :raises ValueError: when a part before the last ends within a block.
        """
        if any(part.shape[0] % self.rows_together for part in parts[:-1]):
            raise ValueError(f"rows of {self.name} are stacked in multiples of {self.rows_together}")
        arrays = {key: np.concatenate([part.arrays[key] for part in parts]) for key in parts[0].arrays}
        rows = sum(part.shape[0] for part in parts)
        return Packed((rows, parts[0].shape[1]), arrays, parts[0].constants)

    def rows(self, packed: Packed, first: int, last: int) -> Packed:
        """Rows ``first`` to ``last`` of a packed matrix, the reverse of ``stack``. Override where arrays have no row for each.

        :raises UserError: when this would cut a block in two, with a remedy.
        """
        arrays = {key: array[first:last] for key, array in packed.arrays.items()}
        return Packed((last - first, packed.shape[1]), arrays, packed.constants)

    def columns(self, packed: Packed, first: int, last: int) -> Packed | None:
        """Columns ``first`` to ``last`` with the codes and scales that they have in the whole, for one rank of several.

        None where the format cannot be cut there, and for a quantizer that does not say how: the columns are then packed by
        themselves, with scales of their own.
        """
        return None

    def adopt(self, tensors: dict[str, NDArray[Any]], shape: tuple[int, int]) -> Packed:
        """A matrix that another program packed, exactly: for configs that the offer's ``reads`` accepts.

        :param tensors: by the last part of their names ("weight_packed", "weight_scale"). Take out what is used: what is left
            over is refused, since it would change the values.
        :raises KeyError: when one is missing.
        """
        raise NotImplementedError(f"{self.name} reads what it packed itself")

    def tile(self) -> Any | None:
        """The Triton function that turns a packed tile into values, or None: then CUDA uses ``unpack`` once at load.

        A ``@triton.jit`` function ``tile(first, second, output, is_output, start, IN, COLUMNS, GROUP)`` that returns the values
        [outputs, COLUMNS] of these rows of the matrix, from column ``start``, a multiple of COLUMNS, on; zeros for a row with
        ``is_output`` false and for columns from IN on, of which it must read nothing. ``first`` and ``second`` point to the
        packed arrays in their order, GROUP is the whole number among the constants (0 without one): a format of more than two
        arrays or one such number cannot be read so. Values are what ``unpack`` says, in float32.
        """
        return None


class ByRole(Quantizer):
    """One quantizer for the layers and another for the head, or for one of them alone."""

    def __init__(self, layers: Quantizer | None, head: Quantizer | None) -> None:
        """``head`` packs the head and nothing else, ``layers`` what it packs but the head."""
        if layers is None and head is None:
            raise ValueError("neither the layers nor the head is packed")
        self._layers, self._head = layers, head
        named: list[Quantizer] = [each for each in (layers, head) if each is not None]
        self.name, self.layout = " and ".join(each.name for each in named), named[0].layout
        self.roles = frozenset[Role]() if layers is None else layers.roles - {"head"}
        if head is not None:
            self.roles |= {"head"}

    def of_role(self, role: Role) -> Quantizer:
        its = self._head if role == "head" else self._layers and self._layers.of_role(role)
        if its is None:
            raise LookupError(f"{role} is not packed")
        return its

    def pack(self, weight: NDArray[np.float32]) -> Packed:
        raise LookupError(f"{self.name} pack by role: of_role says which")

    def unpack(self, packed: Packed) -> NDArray[np.float32]:
        raise LookupError(f"{self.name} pack by role: of_role says which")

    def bits_per_weight(self, in_features: int) -> float:
        raise LookupError(f"{self.name} pack by role: of_role says which")


def packed_chunks(weight: Weight, quantizer: Quantizer) -> Iterator[Packed]:
    """A weight a few rows at a time, so that no matrix ever exists whole in float32: ``stack`` makes one of them.

    All but the last have whole blocks of ``rows_together`` rows: what a part leaves of a block begun goes with the next one.
    What came packed out of its checkpoint is only cut into pieces.
    """
    together = quantizer.rows_together
    if weight.packed is not None:
        whole = weight.packed
        step = chunk_rows(whole.shape[1], together)
        for first in range(0, whole.shape[0], step):
            yield quantizer.rows(whole, first, min(first + step, whole.shape[0]))
    begun: NDArray[np.float32] | None = None  # rows of a block that the parts so far did not fill
    for part in weight.parts:
        step, first = chunk_rows(part.shape[1], together), 0
        while first < len(part):
            rows = np.ascontiguousarray(part[first : first + step], dtype=np.float32)
            first += len(rows)
            if begun is not None:
                rows = np.concatenate((begun, rows))
            full = len(rows) // together * together
            if full:
                yield quantizer.pack(rows[:full])
            begun = rows[full:] if full < len(rows) else None
    if begun is not None:
        yield quantizer.pack(begun)


def chunk_rows(columns: int, together: int = 1) -> int:
    return max(1, CHUNK_BYTES // (4 * columns * together)) * together
