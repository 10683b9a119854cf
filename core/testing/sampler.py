"""The contract of samplers: who may be drawn, how often, and that nobody's neighbours matter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from core.interfaces.compute import SamplingArrays, SamplingRows
from core.interfaces.sampler import Sampler
from core.testing.contract import Contract
from core.testing.inputs import sampling_rows, take_rows

Logits = NDArray[np.float32]
VOCABULARIES = (5, 111, 32_000)


class SamplerContract(Contract, kit=True):
    """Give ``make``, and better still ``probabilities``, by which the drawn tokens are counted against your definition.

    ``framework`` and ``device``: what the logits are made of ("torch" on "cpu"). ``honours``: the parameters of a request
    that the sampler obeys besides its temperature; take out what it ignores by design.

    ``probabilities(logits, temperature=, top_k=, top_p=, min_p=)`` returns what each token's probability ought to be,
    as plain float64 numpy, and is the sampler's specification. Return None (the default) to leave the distribution
    untested. The chi-square test raises a false alarm with probability ``false_alarm_rate`` for each of ``cases``; the seeds
    are fixed, so it does not come and go.
    """

    framework: str = "torch"
    device: str = "cpu"
    honours: frozenset[str] = frozenset({"top_k", "top_p", "min_p"})
    false_alarm_rate: float = 1e-6
    draws: int = 20_000
    cases: Sequence[Mapping[str, float]] = (
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 3},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"top_k": 4, "top_p": 0.8, "min_p": 0.05, "temperature": 1.5},
    )

    def make(self) -> Sampler:
        """A new sampler, as your offer's ``create`` makes it."""
        raise NotImplementedError(f"{type(self).__name__} must define make()")

    def probabilities(
        self, logits: NDArray[np.float64], *, temperature: float, top_k: int, top_p: float, min_p: float
    ) -> NDArray[np.float64] | None:
        """What each token's probability ought to be, for one row [V]; zero for what may never be drawn."""
        return None

    def sampled(self, logits: Logits, rows: SamplingRows) -> NDArray[np.int64]:
        """Draw through a new sampler and check the shape of what comes back. The logits are copied: they may be overwritten."""
        drawn = to_numpy(self.make().sample(to_framework(logits, self.framework, self.device), rows))
        assert drawn.shape == (len(rows),), f"one token a row: expected shape ({len(rows)},), got {drawn.shape}"
        assert drawn.dtype == np.int64, f"token ids are int64, not {drawn.dtype}"
        assert ((drawn >= 0) & (drawn < logits.shape[1])).all(), "a token id lies outside the vocabulary"
        return drawn

    # --- what is promised -------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("vocab", VOCABULARIES)
    def test_greedy_rows_take_their_argmax(self, vocab: int) -> None:
        logits = random_logits(7, vocab)
        drawn = self.sampled(logits, sampling_rows(7, temperature=0.0, seeds=range(7)))
        assert np.array_equal(drawn, logits.argmax(axis=1))

    def test_greedy_takes_the_lowest_id_among_equals(self) -> None:
        logits = np.zeros((3, 111), dtype=np.float32)
        logits[1, [40, 90]] = 2.0
        logits[2, 110] = 1.0
        assert self.sampled(logits, sampling_rows(3, temperature=0.0)).tolist() == [0, 40, 110]

    @pytest.mark.parametrize("vocab", VOCABULARIES)
    def test_greedy_and_drawn_rows_mix(self, vocab: int) -> None:
        logits = random_logits(8, vocab)
        temperature = [0.0, 1.0, 0.0, 5.0, 0.0, 0.3, 100.0, 0.0]
        drawn = self.sampled(logits, sampling_rows(8, temperature=temperature, seeds=range(8), positions=range(8)))
        greedy = [row for row, value in enumerate(temperature) if value == 0.0]
        assert np.array_equal(drawn[greedy], logits[greedy].argmax(axis=1))

    @pytest.mark.parametrize("vocab", VOCABULARIES)
    @pytest.mark.parametrize("temperature", [0.7, 1.0, 100.0])
    def test_minus_infinity_is_never_drawn(self, vocab: int, temperature: float) -> None:
        count = 128
        logits = random_logits(count, vocab)
        allowed = np.random.default_rng(vocab).random((count, vocab)) < 0.3
        allowed[np.arange(count), np.arange(count) % vocab] = True
        logits[~allowed] = -np.inf
        drawn = self.sampled(logits, sampling_rows(count, temperature=temperature, seeds=range(count), positions=range(count)))
        assert allowed[np.arange(count), drawn].all(), "a token with logit -inf was drawn"

    def test_a_single_allowed_token_is_drawn(self) -> None:
        logits = np.full((64, 111), -np.inf, dtype=np.float32)
        only = 110 - np.arange(64) * 53 % 111
        logits[np.arange(64), only] = -50.0
        assert np.array_equal(self.sampled(logits, sampling_rows(64, seeds=range(64))), only)

    @pytest.mark.parametrize("spoiled", ["one NaN", "all NaN", "all -inf"])
    def test_a_row_without_a_distribution_falls_to_its_argmax(self, spoiled: str) -> None:
        logits = random_logits(5, 111)
        clean = self.sampled(logits, sampling_rows(5, seeds=range(5)))
        logits[2, 50 if spoiled == "one NaN" else slice(None)] = -np.inf if spoiled == "all -inf" else np.nan
        drawn = self.sampled(logits, sampling_rows(5, seeds=range(5)))
        greedy = self.sampled(logits, sampling_rows(5, temperature=0.0, seeds=range(5)))
        assert drawn[2] == greedy[2]
        others = [0, 1, 3, 4]
        assert np.array_equal(drawn[others], clean[others]), "a spoiled row changed its neighbours"

    @pytest.mark.parametrize("vocab", VOCABULARIES)
    def test_each_row_alone_equals_itself_in_the_batch(self, vocab: int) -> None:
        logits, rows = random_logits(12, vocab), self.varied_rows(12)
        together = self.sampled(logits, rows)
        alone = [int(self.sampled(logits[row : row + 1], take_rows(rows, [row]))[0]) for row in range(12)]
        assert together.tolist() == alone
        order = [11, 3, 7, 0, 9, 5, 1, 10, 2, 8, 6, 4]
        assert self.sampled(logits[order], take_rows(rows, order)).tolist() == [alone[row] for row in order]

    @pytest.mark.parametrize("vocab", VOCABULARIES)
    def test_equal_seed_and_position_give_the_equal_token(self, vocab: int) -> None:
        logits, rows = random_logits(12, vocab), self.varied_rows(12)
        sampler = self.make()
        first = to_numpy(sampler.sample(to_framework(logits, self.framework, self.device), rows))
        sampler.sample(
            to_framework(random_logits(3, vocab), self.framework, self.device), sampling_rows(3, seeds=range(50, 53))
        )
        again = to_numpy(sampler.sample(to_framework(logits, self.framework, self.device), rows))
        assert np.array_equal(first, again), "the sampler remembers something between calls"
        assert np.array_equal(first, self.sampled(logits, rows))

    def test_the_rows_themselves_are_left_alone(self) -> None:
        rows = self.varied_rows(12)
        before = take_rows(rows, range(12))
        self.sampled(random_logits(12, 111), rows)
        for column in ("temperature", "top_k", "top_p", "min_p", "seeds", "positions", "logprobs"):
            assert np.array_equal(getattr(rows, column), getattr(before, column)), f"sample changed rows.{column}"

    @pytest.mark.parametrize("varied", ["positions", "seeds"])
    def test_other_positions_and_seeds_draw_other_tokens(self, varied: str) -> None:
        """256 draws from 32 equal tokens hit all of them but for chance; fewer than 24 do not happen."""
        logits = np.zeros((256, 32), dtype=np.float32)
        rows = sampling_rows(256, **{varied: range(1000, 1256)})  # type: ignore[arg-type]
        assert len(set(self.sampled(logits, rows).tolist())) >= 24

    def test_large_seeds_and_positions(self) -> None:
        rows = sampling_rows(3, seeds=[2**64 - 1, 2**63, 2**32], positions=[2**31, 131_071, 0])
        self.sampled(random_logits(3, 111), rows)

    @pytest.mark.parametrize("vocab", VOCABULARIES)
    def test_a_temperature_near_zero_is_greedy(self, vocab: int) -> None:
        logits = np.random.default_rng(vocab).permuted(np.broadcast_to(np.arange(vocab, dtype=np.float32), (64, vocab)), axis=1)
        drawn = self.sampled(logits, sampling_rows(64, temperature=1e-4, seeds=range(64), positions=range(64)))
        assert np.array_equal(drawn, logits.argmax(axis=1))

    def test_a_limit_that_leaves_one_token_is_greedy(self) -> None:
        logits = np.random.default_rng(1).permuted(np.broadcast_to(np.arange(111, dtype=np.float32) / 10, (64, 111)), axis=1)
        limits: dict[str, float] = {"top_k": 1, "top_p": 1e-6, "min_p": 1.0}
        for name in sorted(self.honours):
            rows = sampling_rows(64, temperature=3.0, seeds=range(64), **{name: limits[name]})  # type: ignore[arg-type]
            assert np.array_equal(self.sampled(logits, rows), logits.argmax(axis=1)), (
                f"{name}={limits[name]} kept more than one token"
            )

    def test_limits_that_exclude_nothing_change_nothing(self) -> None:
        logits = random_logits(64, 111)
        seeds = range(64)
        free = self.sampled(logits, sampling_rows(64, seeds=seeds))
        assert np.array_equal(self.sampled(logits, sampling_rows(64, seeds=seeds, top_k=1_000_000)), free)
        assert np.array_equal(self.sampled(logits, sampling_rows(64, seeds=seeds, top_k=111, top_p=1.0, min_p=0.0)), free)

    def test_extreme_logits(self) -> None:
        logits = random_logits(16, 111) * np.float32(1e30)
        drawn = self.sampled(logits, sampling_rows(16, seeds=range(16)))
        assert np.array_equal(drawn, logits.argmax(axis=1))
        far = np.tile(random_logits(1, 111) - np.float32(1e5), (64, 1))
        drawn = self.sampled(far, sampling_rows(64, temperature=3.0, seeds=range(64)))
        assert len(set(drawn.tolist())) > 1, (
            "only differences of logits matter, yet -100000 for all of them leaves nothing to draw"
        )

    @pytest.mark.parametrize("vocab", [5, 111])
    def test_the_distribution_is_the_one_defined(self, vocab: int) -> None:
        logits = np.linspace(2.5, -2.5, vocab, dtype=np.float32)[np.random.default_rng(vocab).permutation(vocab)]
        for number, case in enumerate(self.cases):
            given: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **case}
            expected = self.probabilities(logits.astype(np.float64), **given)
            if expected is None:
                return
            assert expected.sum() == pytest.approx(1.0), "probabilities() must sum to 1"
            rows = sampling_rows(self.draws, seeds=number, positions=range(self.draws), **given)
            drawn = self.sampled(np.tile(logits, (self.draws, 1)), rows)
            counts = np.bincount(drawn, minlength=vocab)
            assert not counts[expected == 0].any(), f"{given}: a token of probability 0 was drawn"
            chance = chi_square(counts, expected * self.draws)
            assert chance >= self.false_alarm_rate, (
                f"{given}: so far from the defined distribution by chance only 1 in {1 / chance:.0g}"
            )

    def test_warm_may_be_called_before_the_first_draw(self) -> None:
        sampler = self.make()
        sampler.warm(111, self.device)
        logits = random_logits(4, 111)
        warmed = to_numpy(sampler.sample(to_framework(logits, self.framework, self.device), sampling_rows(4, seeds=range(4))))
        assert np.array_equal(warmed, self.sampled(logits, sampling_rows(4, seeds=range(4))))

    def test_drawing_on_the_device_gives_the_same_tokens(self) -> None:
        """For a sampler that can be part of a recorded step: from parameters that lie there; logits are not touched."""
        draw = self.make().on_device(self.device)
        if draw is None:
            return
        logits, rows = random_logits(9, 111), self.varied_rows(9)
        seeds, positions = rows.seeds.view(np.int64), rows.positions.astype(np.int32)
        given = (rows.temperature, rows.top_k, rows.top_p, rows.min_p, seeds, positions)
        arrays = SamplingArrays(*(to_framework(each, self.framework, self.device) for each in given))
        placed = to_framework(logits, self.framework, self.device)
        drawn = to_numpy(draw(placed, arrays))
        assert np.array_equal(drawn, self.sampled(logits, rows)), "drawn on the device are other tokens than by sample"
        assert np.array_equal(to_numpy(placed), logits), "drawing on the device has changed the logits"

    def varied_rows(self, count: int) -> SamplingRows:
        """Rows that all differ, every parameter in use."""
        return sampling_rows(
            count,
            temperature=[(0.0, 1.0, 0.5, 2.0)[row % 4] for row in range(count)],
            top_k=[(0, 3, 1, 50)[row // 2 % 4] for row in range(count)],
            top_p=[(1.0, 0.9, 0.3)[row % 3] for row in range(count)],
            min_p=[(0.0, 0.05)[row // 3 % 2] for row in range(count)],
            seeds=[row * 7919 for row in range(count)],
            positions=[row * row for row in range(count)],
        )


def random_logits(rows: int, vocab: int) -> Logits:
    return (np.random.default_rng(rows * 1_000_003 + vocab).standard_normal((rows, vocab)) * 3).astype(np.float32)


def to_framework(values: NDArray[Any], framework: str, device: str) -> Any:
    """A copy of a numpy array as an array of the framework."""
    if framework == "numpy":
        return values.copy()
    if framework == "torch":
        import torch

        return torch.from_numpy(values.copy()).to(device)
    if framework == "paddle":
        import paddle  # type: ignore[import-not-found, import-untyped, unused-ignore]

        return paddle.to_tensor(values, place=device)
    raise ValueError(f"the contract cannot make arrays of {framework!r}: override sampled()")


def to_numpy(array: Any) -> NDArray[Any]:
    if hasattr(array, "detach"):
        array = array.detach().cpu()
    return np.asarray(array.numpy() if hasattr(array, "numpy") else array)


def chi_square(counts: NDArray[np.int64], expected: NDArray[np.float64]) -> float:
    """The probability of counts at least this far from the expected ones. Bins that expect fewer than 5 are pooled."""
    order = np.argsort(expected)
    counts, expected = counts[order], expected[order]
    small = int(np.searchsorted(expected, 5.0))
    if small:
        pooled = max(small, int(np.searchsorted(np.cumsum(expected), 5.0)) + 1)
        counts = np.append(counts[pooled:], counts[:pooled].sum())
        expected = np.append(expected[pooled:], expected[:pooled].sum())
    if len(counts) < 2 or (expected <= 0).any():
        keep = expected > 0
        counts, expected = counts[keep], expected[keep]
    if len(counts) < 2:
        return 1.0
    return chi_square_tail(float(((counts - expected) ** 2 / expected).sum()), len(counts) - 1)


def chi_square_tail(statistic: float, freedom: int) -> float:
    """P(X > statistic) for a chi-square variable with a whole number of degrees of freedom, by its finite series."""
    half = statistic / 2
    if half <= 0:
        return 1.0
    if freedom % 2:
        start, terms = math.erfc(math.sqrt(half)), [i - 0.5 for i in range(1, (freedom - 1) // 2 + 1)]
    else:
        start, terms = 0.0, [float(i) for i in range(freedom // 2)]
    return start + sum(math.exp(power * math.log(half) - half - math.lgamma(power + 1)) for power in terms)
