"""Rope against transformers, in both styles, with and without scaling."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.ernie4_5 import modeling_ernie4_5
from transformers.models.llama import modeling_llama

from core.compute.torch_backend import rope
from core.testing.inputs import tiny_spec

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(("style", "theirs"), [("interleaved", modeling_ernie4_5), ("half", modeling_llama)])
@pytest.mark.parametrize("tokens", [1, 7])
def test_heads_turn_as_in_transformers(style, theirs, tokens):
    spec = replace(tiny_spec(head_dim=32), rope_style=style, rope_theta=500_000.0)
    positions = torch.tensor([0, 1, 5, 100, 999, 1500, 2047])[-tokens:]
    heads = torch.randn(tokens, 6, 32, generator=torch.Generator().manual_seed(0))
    angles = torch.outer(positions.double(), rope.inverse_frequencies(spec)).repeat(1, 2)[None]
    expected, _ = theirs.apply_rotary_pos_emb(
        heads.transpose(0, 1)[None], heads.transpose(0, 1)[None], angles.cos(), angles.sin()
    )
    turns = rope.table(spec, 2048, torch.device("cpu"))[positions][:, None]
    got = rope.rotate(heads, turns, style)
    assert torch.allclose(got.double(), expected[0].transpose(0, 1).double(), atol=1e-5)
    strided = torch.cat([heads, heads], dim=1)[:, :6]
    assert torch.equal(rope.rotate(strided, turns, style), got)
    assert torch.equal(
        rope.rotate(heads.bfloat16(), turns, style), rope.rotate(heads.bfloat16().float(), turns, style).bfloat16()
    )


@pytest.mark.parametrize("scaling", [{"rope_type": "linear", "factor": 4.0}, LLAMA3, {**LLAMA3, "factor": 32.0}])
def test_scaled_frequencies_are_those_of_transformers(scaling):
    config = LlamaConfig(head_dim=64, max_position_embeddings=512, rope_parameters={**scaling, "rope_theta": 10_000.0})
    expected, attention_factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, torch.device("cpu"))
    assert attention_factor == 1.0
    got = rope.inverse_frequencies(tiny_spec(head_dim=64, rope_scaling=scaling))
    assert np.allclose(got, expected.double(), rtol=1e-6)


def test_far_positions_are_turned_exactly():
    """float32 angles are off by 0.006 at position 100,000."""
    spec = replace(tiny_spec(head_dim=16), rope_theta=10_000.0)
    last = rope.table(spec, 131_072, torch.device("cpu"))[-1]
    angles = 131_071 * rope.inverse_frequencies(spec).numpy()
    assert np.allclose(last.numpy(), np.exp(1j * angles), atol=1e-7)
