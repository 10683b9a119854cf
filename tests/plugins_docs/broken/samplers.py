"""A sound sampler in numpy, and what the contract has to say about unsound ones."""

from dataclasses import replace

import numpy as np

from core.interfaces.compute import SamplingRows
from core.interfaces.randomness import uniform
from core.interfaces.sampler import Sampler
from core.testing import SamplerContract


class Plain(Sampler):
    """Each step is a method, so that a mutant changes one."""

    def sample(self, logits, rows):
        numbers = self.numbers(rows)
        return np.array([self.row(logits[row], rows, row, numbers[row]) for row in range(len(rows))], dtype=np.int64)

    def numbers(self, rows):
        return uniform(rows.seeds, rows.positions)

    def row(self, logits, rows, row, number):
        best = self.argmax(logits)
        if rows.temperature[row] == 0:
            return best
        weights = self.weights(logits.astype(np.float64), rows, row)
        if not np.isfinite(weights).all() or weights.sum() == 0:
            return best
        return self.pick(weights, number)

    def argmax(self, logits):
        return int(np.argmax(logits))

    def weights(self, logits, rows, row):
        if np.isnan(logits).any() or not np.isfinite(logits.max()):
            return np.zeros_like(logits)
        return probabilities(
            logits, temperature=rows.temperature[row], top_k=rows.top_k[row], top_p=rows.top_p[row], min_p=rows.min_p[row]
        )

    def pick(self, weights, number):
        sums = np.cumsum(weights)
        return int(min(np.searchsorted(sums, number * sums[-1], side="right"), len(sums) - 1))


def probabilities(logits, *, temperature, top_k, top_p, min_p):
    weights = np.exp((logits - logits.max()) / temperature)
    weights[weights < min_p * weights.max()] = 0
    if not top_k and top_p == 1:
        return weights / weights.sum()
    order = np.argsort(-weights, kind="stable")
    ordered = weights[order]
    if top_k:
        ordered[top_k:] = 0
    before = np.cumsum(ordered) - ordered
    ordered[1:][before[1:] >= top_p * ordered.sum()] = 0
    weights = np.zeros_like(weights)
    weights[order] = ordered
    return weights / weights.sum()


class Contract(SamplerContract):
    __test__ = False
    framework = "numpy"
    draws = 2000
    implementation = Plain

    def make(self):
        return self.implementation()

    def probabilities(self, logits, **limits):
        return probabilities(logits, **limits)


class TestSound(Contract):
    __test__ = True


class TestLastOfEquals(Contract):
    __test__ = True
    caught_by = "test_greedy_takes_the_lowest_id_among_equals"

    class implementation(Plain):
        def argmax(self, logits):
            return len(logits) - 1 - int(np.argmax(logits[::-1]))


class TestGreedyIsSecondBest(Contract):
    __test__ = True
    caught_by = "test_greedy_rows_take_their_argmax"

    class implementation(Plain):
        def argmax(self, logits):
            return int(np.argsort(-logits, kind="stable")[1])


class TestBannedTokensGetALittle(Contract):
    __test__ = True
    caught_by = "test_minus_infinity_is_never_drawn"

    class implementation(Plain):
        def weights(self, logits, rows, row):
            return super().weights(np.maximum(logits, -1e2), rows, row)


class TestNaNPoisonsTheBatch(Contract):
    __test__ = True
    caught_by = "test_a_row_without_a_distribution_falls_to_its_argmax"

    class implementation(Plain):
        def sample(self, logits, rows):
            if np.isnan(logits).any():
                return logits.argmax(axis=1)
            return super().sample(logits, rows)


class TestSharedRandomNumbers(Contract):
    __test__ = True
    caught_by = "test_each_row_alone_equals_itself_in_the_batch"

    class implementation(Plain):
        def numbers(self, rows):
            return np.random.default_rng(int(rows.seeds[0])).random(len(rows))


class TestPositionIsIgnored(Contract):
    __test__ = True
    caught_by = "test_other_positions_and_seeds_draw_other_tokens"

    class implementation(Plain):
        def numbers(self, rows):
            return uniform(rows.seeds, np.zeros_like(rows.positions))


class TestSeedIsIgnored(Contract):
    __test__ = True
    caught_by = "test_other_positions_and_seeds_draw_other_tokens"

    class implementation(Plain):
        def numbers(self, rows):
            return uniform(np.zeros_like(rows.seeds), rows.positions)


class TestAGeneratorOfItsOwn(Contract):
    __test__ = True
    caught_by = "test_equal_seed_and_position_give_the_equal_token"
    random = np.random.default_rng(1)

    class implementation(Plain):
        def numbers(self, rows):
            return TestAGeneratorOfItsOwn.random.random(len(rows))


class TestTemperatureHasAFloor(Contract):
    __test__ = True
    caught_by = "test_a_temperature_near_zero_is_greedy"

    class implementation(Plain):
        def weights(self, logits, rows, row):
            rows.temperature = np.maximum(rows.temperature, np.float32(0.5) * (rows.temperature > 0))
            return super().weights(logits, rows, row)


class TestTopKKeepsOneMore(Contract):
    __test__ = True
    caught_by = "test_a_limit_that_leaves_one_token_is_greedy"

    class implementation(Plain):
        def weights(self, logits, rows, row):
            limits = {"top_p": rows.top_p[row], "min_p": rows.min_p[row]}
            top_k = rows.top_k[row] + 1 if rows.top_k[row] else 0
            return probabilities(logits, temperature=rows.temperature[row], top_k=top_k, **limits)


class TestTopPIsSlightlyOff(Contract):
    __test__ = True
    caught_by = "test_the_distribution_is_the_one_defined"

    class implementation(Plain):
        def weights(self, logits, rows, row):
            limits = {"top_k": rows.top_k[row], "min_p": rows.min_p[row]}
            return probabilities(logits, temperature=rows.temperature[row], top_p=rows.top_p[row] ** 0.7, **limits)


class TestTemperatureIsSquared(Contract):
    __test__ = True
    caught_by = "test_the_distribution_is_the_one_defined"

    class implementation(Plain):
        def weights(self, logits, rows, row):
            return super().weights(logits / rows.temperature[row], rows, row)


class TestTheFirstTokenIsNeverDrawn(Contract):
    __test__ = True
    caught_by = "test_the_distribution_is_the_one_defined"

    class implementation(Plain):
        def pick(self, weights, number):
            return max(1, super().pick(weights, number))


class TestCoarseRandomNumbers(Contract):
    """Sixteen different numbers: each of 111 tokens hardly gets its share."""

    __test__ = True
    caught_by = "test_the_distribution_is_the_one_defined"

    class implementation(Plain):
        def numbers(self, rows):
            return np.floor(super().numbers(rows) * 16) / 16


class TestInt32Tokens(Contract):
    __test__ = True
    caught_by = "test_greedy_rows_take_their_argmax"

    class implementation(Plain):
        def sample(self, logits, rows):
            return super().sample(logits, rows).astype(np.int32)


class TestRowsAreOverwritten(Contract):
    __test__ = True
    caught_by = "test_the_rows_themselves_are_left_alone"

    class implementation(Plain):
        def sample(self, logits, rows):
            drawn = super().sample(logits, rows)
            rows.top_k[rows.top_k == 0] = logits.shape[1]
            return drawn


class TestTopKBeyondTheVocabularyFails(Contract):
    __test__ = True
    caught_by = "test_limits_that_exclude_nothing_change_nothing"

    class implementation(Plain):
        def sample(self, logits, rows):
            if (rows.top_k > logits.shape[1]).any():
                raise IndexError("top_k")
            return super().sample(logits, rows)


class TestSoftmaxWithoutShift(Contract):
    __test__ = True
    caught_by = "test_extreme_logits"

    class implementation(Plain):
        def weights(self, logits, rows, row):
            with np.errstate(over="ignore"):
                return np.exp(logits / rows.temperature[row])


class TestWarmingChangesTheDraws(Contract):
    __test__ = True
    caught_by = "test_warm_may_be_called_before_the_first_draw"

    class implementation(Plain):
        offset = 0

        def warm(self, vocab, device):
            self.offset = 1

        def numbers(self, rows):
            return uniform(rows.seeds, rows.positions, draw=self.offset)


class TestOneGreedyRowMakesAllGreedy(Contract):
    __test__ = True
    caught_by = "test_greedy_and_drawn_rows_mix"

    class implementation(Plain):
        def sample(self, logits, rows):
            if (rows.temperature == 0).any() and not (rows.temperature == 0).all():
                return logits.argmin(axis=1)
            return super().sample(logits, rows)


class TestSkipsTheLastToken(Contract):
    __test__ = True
    caught_by = "test_a_single_allowed_token_is_drawn"

    class implementation(Plain):
        def pick(self, weights, number):
            return super().pick(weights[:-1], number)


class TestSeedsAreSigned(Contract):
    __test__ = True
    caught_by = "test_large_seeds_and_positions"

    class implementation(Plain):
        def numbers(self, rows):
            np.array([int(seed) for seed in rows.seeds], dtype=np.int64)
            return super().numbers(rows)


class OnDevice(Plain):
    def on_device(self, device):
        def draw(logits, rows):
            given = {"seeds": rows.seeds.view(np.uint64), "positions": rows.positions.astype(np.int64)}
            columns = {name: getattr(rows, name) for name in ("temperature", "top_k", "top_p", "min_p")}
            return self.sample(logits.copy(), SamplingRows(**columns, **given, logprobs=np.full(len(logits), -1, np.int32)))

        return draw


class TestSoundOnTheDevice(Contract):
    __test__ = True
    implementation = OnDevice


class TestForgetsPositionsOnTheDevice(Contract):
    __test__ = True
    caught_by = "test_drawing_on_the_device_gives_the_same_tokens"

    class implementation(OnDevice):
        def on_device(self, device):
            draw = super().on_device(device)
            return lambda logits, rows: draw(logits, replace(rows, positions=rows.positions * 0))
