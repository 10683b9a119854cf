"""The standard sampler against a plain float64 definition of what it draws."""

import numpy as np
import pytest
import torch

import sampler_standard.sample as sample
from core.interfaces.randomness import uniform
from core.testing.inputs import sampling_rows
from core.testing.sampler import SamplerContract

ALMOST_ONE = 1 - 2.0**-53


def prefix(logits, *, temperature, top_k, top_p, min_p):
    """The kept tokens, likeliest first, and their weights."""
    order = np.lexsort((np.arange(len(logits)), -logits))
    weights = np.exp((logits[order] - logits[order[0]]) / temperature)
    kept = len(order)
    if 0 < top_k < kept:
        kept = top_k
    if top_p < 1:
        sums = np.cumsum(weights[:kept])
        total = sums[-1]
        kept = min(kept, int((sums < np.float64(np.float32(top_p)) * total).sum()) + 1)
    if min_p > 0:
        kept = min(kept, int((weights >= np.float64(np.float32(min_p))).sum()))
    return order[:kept], weights[:kept]


def smooth(random, vocab):
    return random.standard_normal(vocab) * 3


def tied(random, vocab):
    """A bfloat16 head gives a few hundred different values to a hundred thousand tokens."""
    return np.round(random.standard_normal(vocab) * 3 * 4) / 4


def peaked(random, vocab):
    logits = random.standard_normal(vocab)
    logits[random.permutation(vocab)[:20]] += 12
    return logits


class TestContract(SamplerContract):
    def make(self):
        return sample.StandardSampler()

    def probabilities(self, logits, **given):
        kept, weights = prefix(logits, **given)
        out = np.zeros(len(logits))
        out[kept] = weights / weights.sum()
        return out


@pytest.mark.parametrize("vocab", [111, 32_000, 103_424])
@pytest.mark.parametrize("shape", [smooth, tied, peaked])
def test_exactly_the_allowed_tokens_can_be_drawn(monkeypatch, vocab, shape):
    """Uniform numbers are put where they matter: in the middle of kept tokens, and at the end, where the last kept one is."""
    logits = shape(np.random.default_rng(vocab), vocab).astype(np.float32)
    limits = [
        {"temperature": 0.8, "top_k": k, "top_p": p, "min_p": m}
        for k in (0, 10, 100, 5000)
        for p in (0.1, 0.5, 0.9, 1.0)
        for m in (0.0, 0.02)
        if k < vocab and (k, p, m) != (0, 1.0, 0.0)
    ]
    rows, shares, expected = [], [], []
    for limit in limits:
        kept, weights = prefix(logits.astype(np.float64), **{**limit, "temperature": float(np.float32(0.8))})
        sums = np.cumsum(weights)
        for token in {0, len(kept) // 2, len(kept) - 1}:
            rows.append(limit)
            shares.append((sums[token] - weights[token] / 2) / sums[-1])
            expected.append(kept[token])
        rows.append(limit)
        shares.append(ALMOST_ONE)
        expected.append(kept[-1])
    monkeypatch.setattr(sample, "uniform", lambda seeds, positions: np.array(shares)[positions])
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    given = sampling_rows(len(rows), positions=range(len(rows)), **columns)
    drawn = sample.StandardSampler().sample(torch.from_numpy(logits).expand(len(rows), -1), given)
    wrong = [(rows[row], shares[row]) for row in np.flatnonzero(drawn.numpy() != expected)]
    assert not wrong


def test_equal_tokens_at_the_edge_are_kept_by_their_ids(monkeypatch):
    """All of a large vocabulary equal: the candidates are any of them, the kept tokens are the first."""
    logits = torch.zeros(4, 32_000)
    shares = np.array([0.0, ALMOST_ONE, 0.0, ALMOST_ONE])
    monkeypatch.setattr(sample, "uniform", lambda seeds, positions: shares[positions])
    rows = sampling_rows(4, top_k=[10, 10, 0, 0], top_p=[1.0, 1.0, 0.5, 0.5], positions=range(4))
    assert sample.StandardSampler().sample(logits, rows).tolist() == [0, 9, 0, 15_999]


def test_candidates_and_a_full_sort_draw_the_same(monkeypatch):
    logits = torch.from_numpy(tied(np.random.default_rng(3), 6 * 5000).reshape(6, 5000).astype(np.float32))
    rows = sampling_rows(6, top_k=[50, 0, 0, 400, 0, 3], top_p=[0.9, 0.9, 0.2, 1.0, 0.99, 0.5], seeds=range(6))
    with_candidates = sample.StandardSampler().sample(logits, rows)
    monkeypatch.setattr(sample, "CANDIDATES", ())
    assert sample.StandardSampler().sample(logits, rows).tolist() == with_candidates.tolist()


@pytest.mark.parametrize(("vocab", "draws"), [(111, 20_000), (32_000, 4_000)])
def test_the_drawn_frequencies_are_the_probabilities(vocab, draws):
    """Total variation of n draws over K kept tokens. Its mean is at most sqrt(K / n) / 2, and by McDiarmid's bound it exceeds
    that by t with probability exp(-2 n t^2): with t as below a right sampler fails once in a million runs.
    """
    logits = peaked(np.random.default_rng(1), vocab).astype(np.float32)
    limits = {"temperature": 1.5, "top_k": 40, "top_p": 0.9, "min_p": 0.0}
    sampler = sample.StandardSampler()
    counts = np.zeros(vocab)
    for first in range(0, draws, 500):
        rows = sampling_rows(500, seeds=7, positions=range(first, first + 500), **limits)
        np.add.at(counts, sampler.sample(torch.from_numpy(logits).expand(500, -1), rows).numpy(), 1)
    kept, weights = prefix(logits.astype(np.float64), **limits)
    expected = np.zeros(vocab)
    expected[kept] = weights / weights.sum()
    assert not counts[expected == 0].any()
    assert np.abs(counts / draws - expected).sum() / 2 <= np.sqrt(len(kept) / draws) / 2 + np.sqrt(np.log(1e6) / (2 * draws))


def test_without_limits_the_draw_is_the_inverse_of_the_summed_probabilities():
    logits = np.random.default_rng(4).standard_normal((50, 997)).astype(np.float32)
    rows = sampling_rows(50, temperature=0.7, seeds=range(50), positions=range(100, 150))
    weights = np.exp(logits.astype(np.float64) / np.float64(np.float32(0.7)))
    sums = np.cumsum(weights, axis=1)
    shares = uniform(rows.seeds, rows.positions) * sums[:, -1]
    expected = [int(np.searchsorted(own, share, side="right")) for own, share in zip(sums, shares, strict=True)]
    assert sample.StandardSampler().sample(torch.from_numpy(logits), rows).tolist() == expected


def test_the_end_of_the_line_is_never_a_forbidden_token(monkeypatch):
    """The largest uniform number there is, with -inf behind the last allowed token."""
    monkeypatch.setattr(sample, "uniform", lambda seeds, positions: np.full(len(seeds), ALMOST_ONE))
    logits = torch.full((3, 997), -torch.inf)
    logits[:, :50] = torch.linspace(0.1, 3.3, 150).view(3, 50)
    assert (sample.StandardSampler().sample(logits, sampling_rows(3)) == 49).all()


def test_logits_made_in_inference_mode_are_taken():
    with torch.inference_mode():
        logits = torch.randn(3, 600)
    rows = sampling_rows(3, temperature=[0.0, 1.0, 1.0], top_p=[1.0, 1.0, 0.9])
    assert sample.StandardSampler().sample(logits, rows).shape == (3,)
