"""Projections of a few tokens against float64, of widths that no block divides, each way they can be divided among programs."""

import pytest
import torch

from core.compute.torch_backend.triton import few_rows
from core.compute.torch_backend.triton.gate import gated as gated_at_once
from core.compute.torch_backend.triton.norm import normed as normed_at_once
from core.compute.torch_backend.triton.packed import Reading, plain_tile
from core.compute.torch_backend.triton.tiling import Tiling

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}  # the interpreter cuts a bfloat16 off
EPS = 1e-5


def drawn(*shape, dtype, scale=1.0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * scale).to(dtype)


def normed(hidden, norm):
    wide = hidden.double()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS) * norm.double()).to(hidden.dtype).double()


def read(weight):
    return Reading(weight, weight, tuple(weight.shape), plain_tile)


def gated(both):
    gate, up = both.chunk(2, -1)
    return torch.nn.functional.silu(gate) * up


def check(got, expected, dtype=None):
    assert not got.isnan().any()
    assert (got.double() - expected).abs().max() <= TOLERANCE[dtype or got.dtype] * expected.abs().max()


ONE = Tiling(1, 2, 128, dot=False, early=True)
SUMS = Tiling(4, 1, 32, dot=False)
READ = Tiling(16, 16, 32, dot=True)
HELD = Tiling(16, 8, 64, dot=True, held=True)
CASES = [
    pytest.param(ONE, torch.bfloat16, id="one"),
    pytest.param(SUMS, torch.float32, id="sums"),
    pytest.param(SUMS, torch.float16, id="sums in float16"),
    pytest.param(READ, torch.float32, id="read"),
    pytest.param(HELD, torch.bfloat16, id="held"),
    pytest.param(HELD, torch.float16, id="held in float16"),
]


@pytest.mark.parametrize(("way", "dtype"), CASES)
def test_gate_up(way, dtype):
    tokens = 18 if way is READ else min(way.rows, 3)  # more than one tile of them
    hidden, norm, weight = drawn(tokens, 72, dtype=dtype), drawn(72, dtype=dtype), drawn(2 * 42, 72, dtype=dtype, scale=0.1)
    both = normed(hidden, norm) @ weight.double().T
    check(few_rows.gate_up(hidden, norm, EPS, read(weight), way), gated(both))
    check(gated_at_once(both.to(dtype)), gated(both.to(dtype).double()))


@pytest.mark.parametrize(("way", "dtype"), CASES)
def test_the_residual_is_added_to_in_place(way, dtype):
    tokens = min(way.rows, 3)
    x, weight, residual = drawn(tokens, 72, dtype=dtype), drawn(42, 72, dtype=dtype, scale=0.1), drawn(5, 42, dtype=dtype)
    behind = residual[tokens:].clone()
    expected = residual[:tokens].double() + x.double() @ weight.double().T
    got = few_rows.linear_add(x, read(weight), residual[:tokens], way)
    assert got.data_ptr() == residual.data_ptr()
    check(got, expected)
    assert torch.equal(residual[tokens:], behind)


@pytest.mark.parametrize(("way", "dtype"), CASES)
def test_logits_of_chosen_rows_are_float32(way, dtype):
    hidden, norm, weight = drawn(5, 72, dtype=dtype), drawn(72, dtype=dtype), drawn(42, 72, dtype=dtype, scale=0.1)
    rows = torch.tensor([3, 0, 4][: way.rows], dtype=torch.int32)
    got = few_rows.logits(hidden, rows, norm, EPS, read(weight), len(rows), way)
    assert got.dtype == torch.float32
    check(got, normed(hidden, norm)[rows] @ weight.double().T, dtype)
    one = few_rows.logits(hidden, None, norm, EPS, read(weight), 1, way)
    check(one, normed(hidden, norm)[:1] @ weight.double().T, dtype)


def test_what_float16_has_no_room_for_before_it_is_normed():
    hidden = drawn(3, 72, dtype=torch.float16, scale=15_000.0).clamp(-60_000, 60_000)
    norm, weight = drawn(72, dtype=torch.float16, scale=5.0), drawn(42, 72, dtype=torch.float16, scale=0.1)
    got = few_rows.logits(hidden, None, norm, EPS, read(weight), 3, HELD)
    check(got, normed(hidden, norm) @ weight.double().T, torch.float16)


def test_many_tokens_are_normed_at_once():
    hidden, norm = drawn(5, 72, dtype=torch.bfloat16), drawn(72, dtype=torch.bfloat16)
    check(normed_at_once(hidden, norm, EPS), normed(hidden, norm))
