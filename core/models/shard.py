"""One rank's part of a decoder whose weights are split over several: by heads, by the feed-forward's columns, by vocabulary.

"qkv" and "gate_up" lose rows, so each rank computes some heads and some of the feed-forward; "o" and "down" lose the columns
that would multiply the others' results, so their products are partial sums. "embed" and "head" keep a range of tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from core.errors import UserError
from core.interfaces.model import DecoderSpec, Role, Tensor, Weight
from core.interfaces.quantizer import Packed, Quantizer, packed_chunks


@dataclass(frozen=True)
class Shard:
    """Rank ``rank`` of ``ranks`` of ``whole``. Rules have seen to it that heads and feed-forward divide."""

    whole: DecoderSpec
    rank: int
    ranks: int

    @cached_property
    def spec(self) -> DecoderSpec:
        """What this rank holds. Fewer key/value heads than ranks are repeated; tables are filled up to the same size on each.

        Where something does not divide, the largest share: memory is estimated by it before the rules are asked.
        """
        whole = self.whole

        def share(number: int) -> int:
            return -(-number // self.ranks)

        return replace(
            whole,
            num_heads=share(whole.num_heads),
            num_kv_heads=share(whole.num_kv_heads),
            intermediate=share(whole.intermediate),
            vocab=share(whole.vocab),
        )

    def weights(self, weights: Iterable[Weight], quantizer: Quantizer | None) -> Iterator[Weight]:
        """The shard of each weight. Parts are views; columns of what a quantizer takes arrive packed, see ``_packed``."""
        for weight in weights:
            yield weight if self.ranks == 1 else self._cut(weight, quantizer)

    def _cut(self, weight: Weight, quantizer: Quantizer | None) -> Weight:
        role = weight.name.role
        if role == "norm":
            return weight
        packs = quantizer is not None and role in quantizer.roles
        packer = quantizer.of_role(role) if quantizer is not None and packs else None
        if packer is not None and (weight.packed is not None or role in ("o", "down")):
            packed = self._packed(weight, packer)
            if packed is not None:
                return replace(weight, parts=(), packed=packed)
        if role in ("o", "down"):
            columns = self._range(self.spec.shape(role)[1])
            return replace(weight, parts=tuple(part[:, columns] for part in weight.parts))
        if role in ("embed", "head"):
            (table,) = weight.parts
            own = table[self._range(self.spec.vocab)]
            missing = self.spec.vocab - len(own)
            return replace(weight, parts=(own, np.zeros((missing, table.shape[1]), table.dtype)) if missing else (own,))
        parts: Iterable[Tensor] = (part[rows] for part, rows in zip(weight.parts, self._rows_of_parts(role), strict=True))
        return replace(weight, parts=tuple(parts))

    def _packed(self, weight: Weight, quantizer: Quantizer) -> Packed | None:
        """The same codes and scales as the whole matrix has; None where the format cannot be cut and is to be packed here.

        Columns are cut after packing: a scale that a whole row shares is that of the whole row on every rank, and a model's
        values do not depend on how many ranks hold it.
        """
        role = weight.name.role
        if role in ("o", "down"):
            columns = self._range(self.spec.shape(role)[1])
            cut = [quantizer.columns(chunk, columns.start, columns.stop) for chunk in packed_chunks(weight, quantizer)]
            whole = [chunk for chunk in cut if chunk is not None]
            if len(whole) == len(cut):
                return quantizer.stack(whole)
        elif weight.packed is not None and self._in_blocks(role, quantizer.rows_together):
            pieces = [quantizer.rows(weight.packed, rows.start, rows.stop) for rows in self._rows_of_whole(role)]
            missing = self.spec.shape(role)[0] - sum(piece.shape[0] for piece in pieces)
            if missing:
                pieces.append(quantizer.pack(np.zeros((missing, weight.packed.shape[1]), np.float32)))
            return quantizer.stack(pieces)
        if weight.packed is not None:
            raise UserError.of(
                f"{weight.name} was saved packed as {quantizer.name}, which cannot be cut where {self.ranks} ranks part",
                "",
                "serve it on one rank",
                "start from a checkpoint that is not packed",
            )
        return None

    def _in_blocks(self, role: Role, together: int) -> bool:
        """Whether no block of rows that share something is parted, nor moved over a seam."""
        if together == 1:
            return True
        *before, last = self._rows_of_whole(role)
        begin = all(rows.start % together == 0 for rows in (*before, last))
        whole = all(rows.stop % together == 0 for rows in before)
        return begin and whole and last.stop in (self.whole.shape(role)[0], last.stop // together * together)

    def _range(self, size: int) -> slice:
        """This rank's of consecutive shares; empty or short where nothing is left for it."""
        return slice(self.rank * size, (self.rank + 1) * size)

    def _rows_of_parts(self, role: Role) -> tuple[slice, ...]:
        spec = self.spec
        if role == "gate_up":
            return (self._range(spec.intermediate),) * 2
        # Ranks whose query heads share a key/value head have it each.
        first = self.rank * self.whole.num_kv_heads // self.ranks * spec.head_dim
        kv = slice(first, first + spec.kv_width)
        return self._range(spec.q_width), kv, kv

    def _rows_of_whole(self, role: Role) -> Iterator[slice]:
        """Of a matrix whose parts are one: the parts' rows, each behind the parts before."""
        if role in ("embed", "head"):
            own = self._range(self.spec.vocab)
            yield slice(min(own.start, self.whole.vocab), min(own.stop, self.whole.vocab))
            return
        whole = self.whole
        widths = (whole.intermediate,) * 2 if role == "gate_up" else (whole.q_width, whole.kv_width, whole.kv_width)
        before = 0
        for width, rows in zip(widths, self._rows_of_parts(role), strict=True):
            yield slice(before + rows.start, before + rows.stop)
            before += width


def divides(whole: DecoderSpec, ranks: int) -> bool:
    """Whether so many ranks can have the same number of heads and feed-forward columns each."""
    kv_heads = whole.num_kv_heads
    shared = kv_heads % ranks == 0 or ranks % kv_heads == 0
    return whole.num_heads % ranks == 0 and whole.intermediate % ranks == 0 and shared
