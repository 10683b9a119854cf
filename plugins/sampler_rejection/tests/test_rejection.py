"""The rejection sampler in plain torch against the float64 definition of what it draws."""

import numpy as np
import pytest
import torch

from core.interfaces.randomness import uniform
from core.testing.inputs import sampling_rows, take_rows
from sampler_rejection import limits, pivots
from sampler_rejection.sample import RejectionSampler

VOCABULARIES = (111, 32_000, 103_424)
LIMITS = [
    {"temperature": 0.8, "top_k": k, "top_p": p, "min_p": m}
    for k in (0, 10, 100, 500)
    for p in (0.1, 0.5, 0.9, 1.0)
    for m in (0.0, 0.02)
]


def probes(logits, limit, reference, random):
    """Tokens about which there may be doubt, each with the number at which the first round proposes it, and whether it is kept.

    The first round draws from all that top_k leaves, but for what is surely below min_p.
    """
    kept = reference.probabilities(logits, **limit)
    proposed = reference.probabilities(logits, **{**limit, "top_p": 1.0, "min_p": limit["min_p"] * (1 - limits.NEAR)})
    order = np.lexsort((np.arange(len(logits)), -logits))
    last = int((kept > 0).sum()) - 1
    ranks = {0, last // 2, max(0, last - 1), last, last + 1, last + 2, int(random.integers(len(logits)))}
    sums = np.cumsum(proposed)
    for token in (order[rank] for rank in sorted(ranks) if rank < len(logits)):
        if proposed[token] > 1e-6:
            yield token, sums[token] - proposed[token] / 2, kept[token] > 0


@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize("shape", ["smooth", "tied", "peaked", "flat"])
def test_what_is_proposed_is_accepted_exactly_if_it_is_kept(monkeypatch, reference, vocab, shape):
    random = np.random.default_rng(vocab)
    logits = getattr(reference, shape)(random, vocab)
    cases = LIMITS if vocab < 100_000 else LIMITS[1::3]
    tried = [(limit, *probe) for limit in cases for probe in probes(logits, limit, reference, random)]
    rows = sampling_rows(
        len(tried),
        positions=range(len(tried)),
        **{name: [limit[name] for limit, *_ in tried] for name in ("temperature", "top_k", "top_p", "min_p")},
    )
    first = np.array([share for _, _, share, _ in tried])
    monkeypatch.setattr(limits, "uniform", lambda s, at, draw: first[at] if draw == 0 else uniform(s, at, draw))
    drawn = RejectionSampler().sample(torch.from_numpy(logits).expand(len(tried), -1), rows).tolist()
    wrong = [
        (limit, int(token), bool(is_kept), got)
        for (limit, token, _, is_kept), got in zip(tried, drawn, strict=True)
        if (got == token) != is_kept
    ]
    assert not wrong
    assert {is_kept for *_, is_kept in tried} == {True, False}


@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize(
    "limit",
    [
        {"top_p": 0.1},
        {"top_p": 0.5},
        {"top_p": 0.9},
        {"top_k": 10},
        {"top_k": 100},
        {"top_k": 500},
        {"top_k": 100, "top_p": 0.5, "min_p": 0.001},
    ],
    ids=str,
)
def test_the_drawn_frequencies_are_the_probabilities(reference, vocab, limit):
    """Total variation of n draws over K kept tokens. Its mean is at most sqrt(K / n) / 2, and by McDiarmid's bound it exceeds
    that by t with probability exp(-2 n t^2): with t as below a right sampler fails once in a million runs.
    """
    logits = np.random.default_rng(vocab).standard_normal(vocab).astype(np.float32)
    logits[:: max(1, vocab // 300)] += 12  # some hundred tokens hold the mass
    draws = 1500 if vocab > 111 else 10_000
    given = {"temperature": 0.9, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **limit}
    counts = np.zeros(vocab)
    for start in range(0, draws, 500):
        rows = sampling_rows(500, seeds=5, positions=range(start, start + 500), **given)
        np.add.at(counts, RejectionSampler().sample(torch.from_numpy(logits).expand(500, -1), rows).numpy(), 1)
    expected = reference.probabilities(logits, **given)
    assert not counts[expected == 0].any()
    spread = np.sqrt((expected > 0).sum() / draws) / 2 + np.sqrt(np.log(1e6) / (2 * draws))
    assert np.abs(counts / draws - expected).sum() / 2 <= spread
    assert spread < 0.4  # else the test would say little


def test_a_neighbour_with_a_larger_k_changes_nothing():
    logits = torch.from_numpy((np.random.default_rng(6).standard_normal((6, 103_424)) * 2).astype(np.float32))
    rows = sampling_rows(6, top_k=[5, 50, 500, 5000, 0, 50], top_p=[1, 0.9, 0.9, 0.5, 0.5, 0.1], seeds=range(6))
    together = RejectionSampler().sample(logits, rows).tolist()
    alone = [int(RejectionSampler().sample(logits[row : row + 1], take_rows(rows, [row]))[0]) for row in range(6)]
    assert together == alone


def test_equals_of_the_kth_that_lie_in_blocks_left_out(reference):
    """Coarse logits, so that more than k tokens equal the largest of many blocks."""
    logits = np.zeros(103_424, np.float32)
    logits[5::64] = 3.0
    rows = sampling_rows(400, top_k=10, temperature=2.0, positions=range(400))
    drawn = RejectionSampler().sample(torch.from_numpy(logits).expand(400, -1), rows)
    assert sorted(set(drawn.tolist())) == list(range(5, 5 + 640, 64))


def test_a_row_that_never_accepts_is_settled(monkeypatch, reference):
    """No rounds: what is kept is found by sorting, and has the same distribution."""
    monkeypatch.setattr(pivots, "ROUNDS", 1)
    logits = np.random.default_rng(7).standard_normal(111).astype(np.float32)
    rows = sampling_rows(20_000, top_p=0.3, positions=range(20_000))
    drawn = RejectionSampler().sample(torch.from_numpy(logits).expand(20_000, -1), rows).numpy()
    expected = reference.probabilities(logits, top_p=0.3)
    counts = np.bincount(drawn, minlength=111)
    spread = np.sqrt((expected > 0).sum() / 20_000) / 2 + np.sqrt(np.log(1e6) / 40_000)
    assert not counts[expected == 0].any()
    assert np.abs(counts / 20_000 - expected).sum() / 2 <= spread


def test_most_below_min_p_by_a_hair_is_settled():
    """One token, and 31,999 that min_p excludes by less than float32 can tell: nearly every proposal is rejected."""
    logits = np.full((20, 32_000), np.log(0.0999995), np.float32)
    logits[:, 123] = 0.0
    drawn = RejectionSampler().sample(torch.from_numpy(logits), sampling_rows(20, min_p=0.1, positions=range(20)))
    assert set(drawn.tolist()) == {123}


def test_the_edges_of_the_limits(reference):
    logits = torch.from_numpy(reference.smooth(np.random.default_rng(9), 997)).expand(4, -1)
    rows = sampling_rows(4, top_p=[0.0, 1e-7, 1.0, 0.9], min_p=[0.0, 0.0, 1.5, 1.0], top_k=[0, 0, 0, 5], temperature=50.0)
    assert set(RejectionSampler().sample(logits, rows).tolist()) == {int(logits[0].argmax())}


def test_logits_made_in_inference_mode_are_taken():
    with torch.inference_mode():
        logits = torch.randn(4, 20_000)
    rows = sampling_rows(4, temperature=[0.0, 1.0, 1.0, 1.0], top_p=[1.0, 1.0, 0.9, 0.5], top_k=[0, 0, 0, 20])
    assert RejectionSampler().sample(logits, rows).shape == (4,)
