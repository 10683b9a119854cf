"""Attention against float64: contexts divided among programs, prompts in blocks and behind prefixes, decodes beside prompts."""

import numpy as np
import pytest
import torch

from core.compute.torch_backend.attention import PagedKV
from core.compute.torch_backend.triton import segmented
from core.compute.torch_backend.triton.attention import Attention, queries_in_tile, splits_of
from core.compute.torch_backend.triton.step import upload
from core.compute.torch_backend.triton.tiling import Division
from core.testing import reference
from core.testing.inputs import PagedSequences, tiny_spec

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}
CPU = torch.device("cpu")


class Sequences:
    """Random q, k and v written and read through a paged cache, and beside it in float64. Pages nobody wrote hold NaN."""

    def __init__(self, spec, dtype, page_size, attention=None):
        self.spec, self.dtype = spec, dtype
        self.kv = PagedKV(spec, 800 // page_size, page_size, dtype, CPU)
        self.kv.keys[0].fill_(torch.nan)
        self.kv.values[0].fill_(torch.nan)
        self.attention = attention or Attention(CPU, 12, False, lambda _: Division(64, 4, 64))
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
        step = upload(batch, queries_in_tile(spec, self.dtype), CPU)
        self.kv.write(0, step.slots.long(), k, v)
        got = self.attention(q.flatten(1), self.kv.keys[0], self.kv.values[0], step, spec)
        assert got.dtype == self.dtype
        for row, sequence in enumerate(self.paged.order):
            own = slice(batch.query_starts[row], batch.query_starts[row + 1])
            for kept, new in ((self.keys, k), (self.values, v)):
                kept[sequence] = np.concatenate([*([kept[sequence]] if sequence in kept else []), new[own].double().numpy()])
            expected = reference.attend(q[own].double().numpy(), self.keys[sequence], self.values[sequence])
            error = np.abs(got[own].double().numpy() - expected.reshape(-1, spec.q_width)).max()
            assert error <= TOLERANCE[self.dtype] * max(1.0, np.abs(expected).max()), f"sequence {sequence} of {counts}"
        return batch, got


@pytest.mark.parametrize(
    ("dtype", "page_size", "heads", "kv_heads", "head_dim"),
    [
        (torch.bfloat16, 16, 4, 2, 64),
        (torch.bfloat16, 64, 16, 2, 128),
        (torch.float16, 16, 3, 1, 16),
        (torch.float32, 1, 2, 2, 8),
        (torch.float32, 16, 6, 2, 24),
    ],
)
def test_prompts_prefixes_and_decodes(dtype, page_size, heads, kv_heads, head_dim):
    spec = tiny_spec(num_layers=1, num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim)
    sequences = Sequences(spec, dtype, page_size)
    sequences.run({0: 75, 1: 3, 2: 20})
    sequences.run({0: 1, 1: 1})
    sequences.run({1: 1, 2: 1, 0: 9, 3: 1})


def test_the_longest_context_is_divided_among_programs_and_the_order_they_end_in_does_not_matter():
    assert splits_of(2, 1000, 64, 24) == 12
    spec = tiny_spec(num_layers=1)
    sequences = Sequences(spec, torch.float32, 16)
    sequences.run({0: 290, 1: 130})
    sequences.run({0: 1, 1: 1})
    assert not sequences.attention._arrivals.any(), "the counters are zero again"


@pytest.mark.parametrize(("dtype", "heads", "head_dim"), [(torch.bfloat16, 6, 16), (torch.float32, 2, 24)])
def test_in_segments_it_is_the_same_attention(monkeypatch, dtype, heads, head_dim):
    monkeypatch.setattr(segmented, "SEGMENT", 32)
    spec = tiny_spec(num_layers=1, num_heads=heads, num_kv_heads=2, head_dim=head_dim)
    sequences = Sequences(spec, dtype, 16, segmented.SegmentedAttention(CPU, 24))
    sequences.run({0: 75, 1: 3, 2: 20})
    sequences.run({0: 1, 1: 1})
    assert not sequences.attention._arrivals.any(), "the counters are zero again"
    sequences.run({1: 1, 2: 1, 0: 9, 3: 1})


@pytest.mark.parametrize(
    ("pairs", "longest", "splits"),
    [(2, 64, 1), (2, 129, 3), (2, 1 << 20, 64), (200, 4096, 1), (64, 4096, 4), (1 << 17, 99, 1)],
)
def test_how_many_programs_share_a_context(pairs, longest, splits):
    assert splits_of(pairs, longest, 64, 264) == splits
