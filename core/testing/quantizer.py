"""The contract of quantizers: a packed matrix is small, honest about its size, and close to what was packed."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from core.errors import UserError
from core.interfaces.model import LINEAR_ROLES, Weight, WeightName
from core.interfaces.quantizer import Packed, Quantizer, packed_chunks
from core.testing.contract import Contract

Matrix = NDArray[np.float32]
STORABLE = {
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    *("float16", "float32", "float64", "bfloat16", "float8_e4m3fn", "float8_e5m2", "bool"),
}
SMALLEST_HALF = 2.0**-24  # scales may be half precision: what lies below its smallest number may be lost


class QuantizerContract(Contract, kit=True):
    """Give ``make`` and ``max_error``; the rest has defaults.

    ``max_error``: the largest |w - unpack(pack(w))|, as a share of the largest |w| of its group (of its row, when
    ``group_size`` is None). It is a bound that you promise for *any* weights: 1/254 for eight bits and a scale a row.
    A format with another kind of bound overrides ``error_bound``.

    ``in_features``: row lengths that fit the format. ``unfit_in_features``: lengths it has to refuse with a ``UserError``
    that has a remedy; leave it empty when every length fits.
    """

    max_error: float
    group_size: int | None = None
    in_features: tuple[int, ...] = (256, 1024)
    unfit_in_features: tuple[int, ...] = ()

    def make(self) -> Quantizer:
        """A new quantizer, as your offer's ``create`` makes it."""
        raise NotImplementedError(f"{type(self).__name__} must define make()")

    def error_bound(self, weight: Matrix) -> NDArray[np.float64]:
        """The largest error allowed for each value; any shape that broadcasts to the weight's."""
        rows, columns = weight.shape
        group = self.group_size or columns
        largest = np.abs(weight.astype(np.float64)).reshape(rows, columns // group, group).max(axis=2)
        return np.repeat(largest * self.max_error, group, axis=1) * (1 + 1e-5) + SMALLEST_HALF

    # --- what is promised -------------------------------------------------------------------------------------------

    def test_it_says_what_it_is(self) -> None:
        quantizer = self.make()
        assert quantizer.name, "a quantizer has a name"
        assert quantizer.layout, "a quantizer names its layout"
        assert quantizer.roles, "a quantizer packs at least one role"
        assert quantizer.roles <= frozenset(LINEAR_ROLES), "only linears can be packed"

    def test_unpack_gives_the_shape_back(self) -> None:
        quantizer = self.make()
        for columns in self.in_features:
            for rows in (1, 3, 64):
                packed = quantizer.pack(normal(rows, columns))
                values = quantizer.unpack(packed)
                assert packed.shape == (rows, columns)
                assert values.shape == (rows, columns)
                assert values.dtype == np.float32

    def test_the_error_stays_within_its_bound(self) -> None:
        for columns in self.in_features:
            for name, weight in weights(columns).items():
                self.check_error(weight, f"{name}, {columns} columns")

    def check_error(self, weight: Matrix, what: str) -> None:
        quantizer = self.make()
        values = quantizer.unpack(quantizer.pack(weight.copy()))
        assert np.isfinite(values).all(), f"{what}: unpacked values are not finite"
        error = np.abs(values.astype(np.float64) - weight)
        excess = error - self.error_bound(weight)
        worst = np.unravel_index(int(np.argmax(excess)), excess.shape)
        assert excess[worst] <= 0, f"{what}: {weight[worst]!r} became {values[worst]!r}, beyond the bound stated by the author"

    def test_zeros_stay_zero(self) -> None:
        quantizer = self.make()
        for columns in self.in_features:
            values = quantizer.unpack(quantizer.pack(np.zeros((4, columns), dtype=np.float32)))
            assert (values == 0).all()

    def test_one_huge_value_spoils_its_own_row_only(self) -> None:
        """Or the block of rows that it shares a scale with."""
        together = self.make().rows_together
        for columns in self.in_features:
            weight = normal(5 * together, columns)
            plain = self.unpacked(weight)
            weight[2 * together, 7] = 3.0e4
            self.check_error(weight, f"one huge value, {columns} columns")
            spoiled = self.unpacked(weight)
            for rest in (slice(None, 2 * together), slice(3 * together, None)):
                assert np.array_equal(plain[rest], spoiled[rest]), "a huge value changed other rows"

    def test_tiny_values_make_no_nan(self) -> None:
        for columns in self.in_features:
            for scale in (1e-6, 1e-20, 1e-38, 1e-44):
                self.check_error(normal(3, columns) * np.float32(scale), f"weights of size {scale:g}, {columns} columns")

    def test_rows_do_not_depend_on_their_mates(self) -> None:
        """Or only on those of their block, counted from the first row; the last block may be short."""
        together = self.make().rows_together
        rows = 6 * together - together // 3
        for columns in self.in_features:
            weight = normal(rows, columns) * np.logspace(-3, 3, rows, dtype=np.float32)[:, None]
            whole = self.unpacked(weight)
            for first in range(0, rows, together):
                block = slice(first, first + together)
                assert np.array_equal(self.unpacked(weight[block]), whole[block]), f"row {first} alone unpacks differently"

    def test_stacked_parts_equal_the_whole(self) -> None:
        quantizer = self.make()
        for columns in self.in_features:
            seams, weight = self.seams(), normal(self.seams()[-1], columns)
            parts = [quantizer.pack(weight[start:stop].copy()) for start, stop in pairwise(seams)]
            stacked, whole = quantizer.stack(parts), quantizer.pack(weight)
            assert_same_packed(stacked, whole)
            assert np.array_equal(quantizer.unpack(stacked), quantizer.unpack(whole))

    def test_rows_are_taken_out_as_they_were_put_in(self) -> None:
        quantizer = self.make()
        for columns in self.in_features:
            seams, weight = self.seams(), normal(self.seams()[-1], columns)
            whole = quantizer.pack(weight)
            for start, stop in (*pairwise(seams), (0, seams[-1])):
                assert_same_packed(quantizer.rows(whole, start, stop), quantizer.pack(weight[start:stop].copy()))

    def test_columns_keep_their_values(self) -> None:
        """Where the format can be cut: ranks that share a matrix multiply by the numbers it has on one."""
        quantizer = self.make()
        for columns in self.in_features:
            whole = quantizer.pack(normal(32, columns))
            for start, stop in ((0, columns // 2), (columns // 2, columns), (0, columns)):
                cut = quantizer.columns(whole, start, stop)
                if cut is not None:
                    assert cut.shape == (32, stop - start)
                    assert all(array.flags.c_contiguous for array in cut.arrays.values())
                    assert np.array_equal(quantizer.unpack(cut), quantizer.unpack(whole)[:, start:stop])

    def test_constants_do_not_hang_on_the_weights(self) -> None:
        """A checkpoint that is saved packed keeps arrays; the constants come from the quantizer."""
        quantizer = self.make()
        for columns in self.in_features:
            constants = [dict(quantizer.pack(weight).constants) for weight in weights(columns).values()]
            assert all(each == constants[0] for each in constants), "keep in an array what differs from matrix to matrix"

    def test_the_size_is_what_it_says(self) -> None:
        quantizer = self.make()
        for columns in self.in_features:
            rows = -(-256 // quantizer.rows_together) * quantizer.rows_together
            packed = quantizer.pack(normal(rows, columns))
            stored = packed.nbytes * 8 / (rows * columns)
            said = quantizer.bits_per_weight(columns)
            assert stored == pytest.approx(said, rel=0.01), (
                f"{columns} columns: {stored:g} bits a weight are stored, {said:g} said"
            )
            assert stored < 32, "packing made the matrix larger than float32"

    def test_the_packed_arrays_hold_everything(self) -> None:
        """What ``pack`` returned is enough: nothing is remembered in the object, nothing refers to the original."""
        for columns in self.in_features:
            weight = normal(8, columns)
            packed = self.make().pack(weight)
            for key, array in packed.arrays.items():
                assert not np.shares_memory(array, weight), f"{key} is a view of the unpacked matrix"
                assert array.dtype.name in STORABLE, f"{key} is of {array.dtype}, which no checkpoint can hold"
            for key, constant in packed.constants.items():
                assert isinstance(constant, (int, float, str)), f"constant {key} is no plain number or string"
            expected = self.make().unpack(packed)
            self.make().pack(normal(8, columns) + 1)
            copied = Packed(packed.shape, {key: array.copy() for key, array in packed.arrays.items()}, dict(packed.constants))
            assert np.array_equal(self.make().unpack(copied), expected)

    def test_packing_is_deterministic_and_leaves_its_input_alone(self) -> None:
        for columns in self.in_features:
            weight = normal(16, columns)
            before = weight.copy()
            first, second = self.make().pack(weight), self.make().pack(weight)
            assert np.array_equal(weight, before), "pack changed the matrix it was given"
            assert_same_packed(first, second)

    def test_a_transposed_view_packs_the_same(self) -> None:
        """Checkpoints of one layout store [in, out]: a part arrives as a view with strides."""
        quantizer = self.make()
        for columns in self.in_features:
            weight = normal(32, columns)
            view = np.ascontiguousarray(weight.T).T
            assert_same_packed(quantizer.pack(view), quantizer.pack(weight))

    def test_unfit_rows_are_refused_with_a_remedy(self) -> None:
        for columns in self.unfit_in_features:
            with pytest.raises(UserError) as refused:
                self.make().pack(normal(4, columns))
            assert all(problem.remedies for problem in refused.value.problems), "the refusal names no remedy"

    def test_tile_is_a_function_or_nothing(self) -> None:
        tile = self.make().tile()
        assert tile is None or callable(tile) or hasattr(tile, "fn")

    def test_parts_are_packed_in_whole_blocks(self) -> None:
        """As a backend packs them: parts that end within a block come out as the whole matrix does."""
        quantizer, together = self.make(), self.make().rows_together
        columns = self.in_features[0]
        weight = normal(5 * together + together // 2 + 7, columns)
        first, second = 2 * together + together // 2, 2 * together + together // 2 + max(1, together // 4)
        parts = weight[:first], weight[first:second], weight[second:]
        chunks = list(packed_chunks(Weight(WeightName("qkv", 0), parts), quantizer))
        assert all(chunk.shape[0] % together == 0 for chunk in chunks[:-1])
        assert_same_packed(quantizer.stack(chunks), quantizer.pack(weight))

    def seams(self) -> tuple[int, ...]:
        """Where a matrix is cut: at whole blocks of rows, of which the last is short."""
        together = self.make().rows_together
        step = -(-16 // together) * together
        return 0, 4 * step, 5 * step, 6 * step - together // 3

    def unpacked(self, weight: Matrix) -> Matrix:
        quantizer = self.make()
        return quantizer.unpack(quantizer.pack(weight.copy()))


def normal(rows: int, columns: int) -> Matrix:
    """Weights as they are in a trained model: small, about zero."""
    random = np.random.default_rng(rows * 100_003 + columns)
    return (random.standard_normal((rows, columns)) * 0.02).astype(np.float32)


def weights(columns: int) -> dict[str, Matrix]:
    random = np.random.default_rng(columns)
    one_sign = np.where(np.arange(32)[:, None] % 2, -1, 1).astype(np.float32)
    return {
        "normal weights": normal(32, columns),
        "heavy tails": (random.standard_t(2, (32, columns)) * 0.02).astype(np.float32),
        "positive weights": np.abs(normal(32, columns)) + np.float32(0.5),
        "one sign a row": (one_sign * (np.abs(normal(32, columns)) + np.float32(1e-3))).astype(np.float32),
        "equal weights": np.full((4, columns), 0.125, dtype=np.float32),
        "mostly zeros": normal(32, columns) * (random.random((32, columns)) < 0.02).astype(np.float32),
        "two values": np.where(random.random((8, columns)) < 0.5, np.float32(-1), np.float32(1)),
    }


def assert_same_packed(left: Packed, right: Packed) -> None:
    def described(packed: Packed) -> dict[str, Any]:
        return {key: (array.dtype.str, array.shape, array.tobytes()) for key, array in packed.arrays.items()}

    assert left.shape == right.shape
    assert dict(left.constants) == dict(right.constants)
    one, other = described(left), described(right)
    assert one.keys() == other.keys()
    for key in one:
        assert one[key][:2] == other[key][:2], f"array {key} differs in type or shape"
        assert one[key][2] == other[key][2], f"array {key} differs in its bytes"
