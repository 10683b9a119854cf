"""Paged attention against float64: long prompts in blocks, prefixes, decodes of very different lengths."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from core.compute import contexts
from core.compute.torch_backend import step
from core.compute.torch_backend.attention import PagedKV
from core.testing import reference
from core.testing.inputs import PagedSequences, tiny_spec

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}
CPU = torch.device("cpu")


class Sequences:
    """Random q, k and v written and read through a paged cache, and beside it in float64."""

    def __init__(self, spec, dtype, page_size, tokens):
        self.spec, self.dtype = spec, dtype
        self.kv = PagedKV(spec, -(-tokens // page_size) + 8, page_size, dtype, CPU)
        self.paged = PagedSequences(self.kv.num_pages, page_size, seed=page_size)
        self.random = torch.Generator().manual_seed(page_size)
        self.keys, self.values = {}, {}

    def run(self, counts):
        spec = self.spec
        batch = self.paged.step({sequence: [0] * count for sequence, count in counts.items()})
        q, k, v = (
            torch.randn(batch.num_tokens, heads, spec.head_dim, generator=self.random).to(self.dtype)
            for heads in (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
        )
        uploaded = step.upload(batch, self.kv.page_size, self.kv.turns, self.kv.masks)
        self.kv.write(0, uploaded.slots, k, v)
        got = self.kv.attend(0, q, uploaded)
        assert got.shape == (batch.num_tokens, spec.q_width)
        for row, sequence in enumerate(self.paged.order):
            own = slice(batch.query_starts[row], batch.query_starts[row + 1])
            for kept, new in ((self.keys, k), (self.values, v)):
                kept[sequence] = np.concatenate([*([kept[sequence]] if sequence in kept else []), new[own].double().numpy()])
            expected = reference.attend(q[own].double().numpy(), self.keys[sequence], self.values[sequence])
            error = np.abs(got[own].double().numpy() - expected.reshape(-1, spec.q_width)).max()
            assert error <= TOLERANCE[self.dtype] * max(1.0, np.abs(expected).max()), f"sequence {sequence} of {counts}"
        return uploaded


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("page_size", [16, 64])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (4, 4), (6, 1)])
def test_prompts_longer_than_a_block_with_and_without_a_prefix(dtype, page_size, heads, kv_heads):
    spec = tiny_spec(num_layers=1, num_heads=heads, num_kv_heads=kv_heads)
    sequences = Sequences(spec, dtype, page_size, 2000)
    sequences.run({0: 300, 1: 128, 2: 5})
    sequences.run({1: 1, 0: 129, 2: 256, 3: 1})
    sequences.run({0: 1, 1: 1, 3: 1, 2: 40})


@pytest.mark.parametrize("page_size", [1, 16])
def test_decodes_of_very_different_lengths(page_size):
    sequences = Sequences(replace(tiny_spec(num_layers=1), max_positions=4096), torch.float32, page_size, 12_000)
    lengths = {0: 3, 1: 3000, 2: 17, 3: 2900, 4: 60, 5: 1500, 6: 1}
    sequences.run(lengths)
    uploaded = sequences.run(dict.fromkeys(lengths, 1))
    assert 1 < len(uploaded.readings) < 7
    sequences.run({**dict.fromkeys(lengths, 1), 7: 70})


def test_decodes_of_like_lengths_are_one_reading_in_their_own_order():
    sequences = Sequences(tiny_spec(num_layers=1), torch.float32, 16, 600)
    sequences.run({0: 30, 1: 90, 2: 60, 3: 2})
    (reading,) = sequences.run({0: 1, 1: 1, 2: 1, 3: 1}).readings
    assert (reading.rows, reading.sequences, reading.queries, reading.keys) == (slice(0, 4), 4, 1, 91)


def test_sequences_of_one_length_need_no_mask():
    sequences = Sequences(tiny_spec(num_layers=1), torch.float32, 16, 600)
    sequences.run({0: 20, 1: 20})
    (reading,) = sequences.run({0: 1, 1: 1}).readings
    assert reading.mask is None


def test_grouping_covers_everyone_once_and_bounds_the_padding():
    random = np.random.default_rng(0)
    for count in (1, 2, 7, 128, 300):
        for longest in (10, 500, 8000, 100_000):
            lengths = random.integers(1, longest, count).astype(np.int32)
            groups = contexts.alike(lengths)
            assert sorted(np.concatenate(groups).tolist()) == list(range(count))
            for group in groups:
                own = lengths[group]
                assert len(own) * own.max() - own.sum() <= contexts.FREE_PADDING + own.sum() // 4
                assert len(own) == 1 or len(own) * own.max() <= contexts.GATHERED_TOKENS
    assert contexts.alike(np.zeros(0, np.int32)) == []


def test_what_overflowed_half_precision_does_not_reach_the_next_owner_of_its_pages():
    spec = tiny_spec(num_layers=1)
    kv = PagedKV(spec, 2, 16, torch.float16, CPU)
    spoiled = torch.full((16, spec.num_kv_heads, spec.head_dim), torch.inf, dtype=torch.float16)
    for page in range(2):
        kv.write(0, torch.arange(16) + 16 * page, spoiled, spoiled * torch.nan)
    sequences = Sequences(spec, torch.float16, 16, 0)
    kv.masks, sequences.kv, sequences.paged = sequences.kv.masks, kv, PagedSequences(2, 16)
    sequences.run({0: 3, 1: 9})
    sequences.run({0: 1, 1: 1})
