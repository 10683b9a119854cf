"""A sound quantizer, and what the contract has to say about unsound ones."""

import numpy as np

from core.errors import UserError
from core.interfaces.quantizer import Packed, Quantizer
from core.testing import QuantizerContract
from core.testing.fakes import BlockInt8, RowInt8


class Contract(QuantizerContract):
    __test__ = False
    max_error = 0.5 / 127
    implementation = RowInt8

    def make(self):
        return self.implementation()


class TestSound(Contract):
    __test__ = True


class TestSoundInBlocksOfRows(Contract):
    __test__ = True
    implementation = BlockInt8

    def error_bound(self, weight):
        filled = np.pad(np.abs(weight.astype(np.float64)), ((0, -len(weight) % 24), (0, 0)))
        largest = np.repeat(filled.reshape(-1, 24 * weight.shape[1]).max(axis=1), 24)[: len(weight), None]
        return largest * self.max_error * (1 + 1e-5) + 2.0**-24


class Grouped(Quantizer):
    """Four-bit values (a byte each here), one scale for a group of a row."""

    name, layout, roles = "grouped", "grouped", frozenset({"qkv"})

    def pack(self, weight):
        rows, columns = weight.shape
        if columns % 64:
            raise UserError.of(f"{columns} weights do not divide into groups of 64", "", "use a group size that divides them")
        groups = weight.reshape(rows, columns // 64, 64)
        scale = np.maximum(np.abs(groups).max(axis=2) / np.float32(7), np.finfo(np.float32).tiny)
        codes = np.rint(groups / scale[:, :, None]).astype(np.int8)
        return Packed((rows, columns), {"codes": codes, "scale": scale})

    def unpack(self, packed):
        return (packed.arrays["codes"] * packed.arrays["scale"][:, :, None]).astype(np.float32).reshape(packed.shape)

    def bits_per_weight(self, in_features):
        return 8 + 32 / 64


class GroupedContract(QuantizerContract):
    __test__ = False
    max_error = 0.5 / 7
    group_size = 64
    unfit_in_features = (100,)
    implementation = Grouped

    def make(self):
        return self.implementation()


class TestSoundGrouped(GroupedContract):
    __test__ = True


class TestScaleOfTheWholeMatrix(Contract):
    __test__ = True
    caught_by = "test_rows_do_not_depend_on_their_mates"

    class implementation(RowInt8):
        def pack(self, weight):
            scale = np.float32(max(np.abs(weight).max() / 127, 1e-30))
            return Packed(
                weight.shape, {"codes": np.rint(weight / scale).astype(np.int8), "scale": np.full(len(weight), scale)}
            )


class TestLargerBlocksThanItSays(TestSoundInBlocksOfRows):
    caught_by = "test_rows_do_not_depend_on_their_mates"

    class implementation(BlockInt8):
        rows_together = 12

        def pack(self, weight):
            return BlockInt8().pack(weight)

        def unpack(self, packed):
            return BlockInt8().unpack(packed)


class TestTakesRowsWithTheScalesOfTheFirst(TestSoundInBlocksOfRows):
    caught_by = "test_rows_are_taken_out_as_they_were_put_in"

    class implementation(BlockInt8):
        def rows(self, packed, first, last):
            scale = packed.arrays["scale"][: -(-(last - first) // 24)]
            return Packed((last - first, packed.shape[1]), {"codes": packed.arrays["codes"][first:last], "scale": scale})


class TestSwapsTheLastPieces(TestSoundInBlocksOfRows):
    caught_by = "test_parts_are_packed_in_whole_blocks"

    class implementation(BlockInt8):
        def stack(self, parts):
            return RowInt8().stack(parts[:-2] + parts[:-3:-1])


class TestKeepsTheLargestAsAConstant(Contract):
    __test__ = True
    caught_by = "test_constants_do_not_hang_on_the_weights"

    class implementation(RowInt8):
        def pack(self, weight):
            packed = super().pack(weight)
            return Packed(packed.shape, packed.arrays, {"largest": float(np.abs(weight).max())})


class TestStoresWhatNoFileHolds(Contract):
    __test__ = True
    caught_by = "test_the_packed_arrays_hold_everything"

    class implementation(RowInt8):
        def pack(self, weight):
            packed = super().pack(weight)
            return Packed(packed.shape, {**packed.arrays, "scale": packed.arrays["scale"].astype(np.longdouble)})


class TestRoundsDown(Contract):
    __test__ = True
    caught_by = "test_the_error_stays_within_its_bound"

    class implementation(RowInt8):
        def pack(self, weight):
            packed = super().pack(weight)
            codes = np.floor(weight / packed.arrays["scale"][:, None]).clip(-127, 127).astype(np.int8)
            return Packed(packed.shape, {"codes": codes, "scale": packed.arrays["scale"]})


class TestWrapsAround(Contract):
    __test__ = True
    caught_by = "test_the_error_stays_within_its_bound"

    class implementation(RowInt8):
        def pack(self, weight):
            scale = np.abs(weight).max(axis=1) / np.float32(128) + np.float32(1e-30)
            return Packed(
                weight.shape, {"codes": np.rint(weight / scale[:, None]).astype(np.int32).astype(np.int8), "scale": scale}
            )


class TestDividesByZero(Contract):
    __test__ = True
    caught_by = "test_zeros_stay_zero"

    class implementation(RowInt8):
        def pack(self, weight):
            scale = np.abs(weight).max(axis=1) / np.float32(127)
            with np.errstate(invalid="ignore", divide="ignore"):
                codes = np.nan_to_num(np.rint(weight / scale[:, None])).astype(np.int8)
                return Packed(weight.shape, {"codes": codes, "scale": np.float32(1) / (np.float32(1) / scale)})

        def unpack(self, packed):
            with np.errstate(invalid="ignore"):
                return np.where(packed.arrays["scale"][:, None] == 0, np.nan, super().unpack(packed)).astype(np.float32)


class TestTinyScalesUnderflow(Contract):
    __test__ = True
    caught_by = "test_tiny_values_make_no_nan"

    class implementation(RowInt8):
        def pack(self, weight):
            inverse = np.float32(127) / np.maximum(np.abs(weight).max(axis=1), np.float32(1e-45))
            return Packed(weight.shape, {"codes": np.rint(weight * inverse[:, None]).astype(np.int8), "inverse": inverse})

        def unpack(self, packed):
            return (packed.arrays["codes"] / packed.arrays["inverse"][:, None] * 1).astype(np.float32) + np.where(
                np.isinf(packed.arrays["inverse"]), np.nan, 0
            ).astype(np.float32)[:, None]


class TestClipsOutliers(Contract):
    __test__ = True
    caught_by = "test_one_huge_value_spoils_its_own_row_only"

    class implementation(RowInt8):
        def pack(self, weight):
            return super().pack(np.clip(weight, -100, 100))


class TestSaysFewerBits(Contract):
    __test__ = True
    caught_by = "test_the_size_is_what_it_says"

    class implementation(RowInt8):
        def bits_per_weight(self, in_features):
            return 4.0


class TestKeepsTheScaleElsewhere(Contract):
    __test__ = True
    caught_by = "test_the_packed_arrays_hold_everything"
    scale = None

    class implementation(RowInt8):
        def pack(self, weight):
            packed = super().pack(weight)
            TestKeepsTheScaleElsewhere.scale = packed.arrays["scale"]
            return Packed(packed.shape, {"codes": packed.arrays["codes"]})

        def unpack(self, packed):
            return packed.arrays["codes"].astype(np.float32) * TestKeepsTheScaleElsewhere.scale[: packed.shape[0], None]


class TestStochasticRounding(Contract):
    __test__ = True
    caught_by = "test_packing_is_deterministic_and_leaves_its_input_alone"
    random = np.random.default_rng(0)

    class implementation(RowInt8):
        def pack(self, weight):
            return super().pack(weight * np.float32(TestStochasticRounding.random.uniform(0.99, 1.01)))


class TestScalesItsInput(Contract):
    __test__ = True
    caught_by = "test_packing_is_deterministic_and_leaves_its_input_alone"

    class implementation(RowInt8):
        def pack(self, weight):
            packed = super().pack(weight)
            weight /= 2
            return packed


class TestReadsMemoryOrder(Contract):
    __test__ = True
    caught_by = "test_a_transposed_view_packs_the_same"

    class implementation(RowInt8):
        def pack(self, weight):
            return super().pack(weight.ravel(order="K").reshape(weight.shape))


class TestStacksBackwards(Contract):
    __test__ = True
    caught_by = "test_stacked_parts_equal_the_whole"

    class implementation(RowInt8):
        def stack(self, parts):
            return super().stack(parts[::-1])


class TestCutsWhatDoesNotFit(GroupedContract):
    __test__ = True
    caught_by = "test_unfit_rows_are_refused_with_a_remedy"

    class implementation(Grouped):
        def pack(self, weight):
            return super().pack(np.ascontiguousarray(weight[:, : weight.shape[1] // 64 * 64]))


class TestRefusesWithoutARemedy(GroupedContract):
    __test__ = True
    caught_by = "test_unfit_rows_are_refused_with_a_remedy"

    class implementation(Grouped):
        def pack(self, weight):
            if weight.shape[1] % 64:
                raise UserError.of("no")
            return super().pack(weight)


class TestFloat64Values(Contract):
    __test__ = True
    caught_by = "test_unpack_gives_the_shape_back"

    class implementation(RowInt8):
        def unpack(self, packed):
            return super().unpack(packed).astype(np.float64)


class TestPacksNorms(Contract):
    __test__ = True
    caught_by = "test_it_says_what_it_is"

    def make(self):
        return RowInt8(frozenset({"norm"}))


class TestCutsOneColumnTooFar(Contract):
    __test__ = True
    caught_by = "test_columns_keep_their_values"

    class implementation(RowInt8):
        def columns(self, packed, first, last):
            moved = {**packed.arrays, "codes": np.roll(packed.arrays["codes"], 1, axis=1)}
            return super().columns(Packed(packed.shape, moved), first, last)


class TestTileIsAName(Contract):
    __test__ = True
    caught_by = "test_tile_is_a_function_or_nothing"

    class implementation(RowInt8):
        def tile(self):
            return "unpack_int8"
