"""Projections of a few tokens against float64, of widths that no block divides, each way they can be divided among programs."""

import pytest
import torch

from core.compute.torch_backend.triton import few_rows
from core.compute.torch_backend.triton.gate import gated as gated_at_once
from core.compute.torch_backend.triton.packed import Reading, plain_tile
from core.compute.torch_backend.triton.tiling import DOTS, MOST_COLUMNS, MOST_ROWS, SUMS, Tiling, tiling

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


IDS = ("one", "sums", "dot")
WAYS = [Tiling(1, 16, 128, dot=False), Tiling(4, 16, 32, dot=False), Tiling(16, 16, 32, dot=True)]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("way", WAYS, ids=IDS)
def test_gate_up(dtype, way):
    tokens = min(way.rows, 3)
    hidden, norm, weight = drawn(tokens, 72, dtype=dtype), drawn(72, dtype=dtype), drawn(2 * 42, 72, dtype=dtype, scale=0.1)
    both = normed(hidden, norm) @ weight.double().T
    check(few_rows.gate_up(hidden, norm, EPS, read(weight), way), gated(both))
    check(gated_at_once(both.to(dtype)), gated(both.to(dtype).double()))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("way", WAYS, ids=IDS)
def test_the_residual_is_added_to_in_place(dtype, way):
    tokens = min(way.rows, 3)
    x, weight, residual = drawn(tokens, 72, dtype=dtype), drawn(42, 72, dtype=dtype, scale=0.1), drawn(5, 42, dtype=dtype)
    behind = residual[tokens:].clone()
    expected = residual[:tokens].double() + x.double() @ weight.double().T
    got = few_rows.linear_add(x, read(weight), residual[:tokens], way)
    assert got.data_ptr() == residual.data_ptr()
    check(got, expected)
    assert torch.equal(residual[tokens:], behind)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("way", WAYS, ids=IDS)
def test_logits_of_chosen_rows_are_float32(dtype, way):
    hidden, norm, weight = drawn(5, 72, dtype=dtype), drawn(72, dtype=dtype), drawn(42, 72, dtype=dtype, scale=0.1)
    rows = torch.tensor([3, 0, 4][: way.rows], dtype=torch.int32)
    got = few_rows.logits(hidden, rows, norm, EPS, read(weight), len(rows), way)
    assert got.dtype == torch.float32
    check(got, normed(hidden, norm)[rows] @ weight.double().T, dtype)
    one = few_rows.logits(hidden, None, norm, EPS, read(weight), 1, way)
    check(one, normed(hidden, norm)[:1] @ weight.double().T, dtype)


@pytest.mark.parametrize("role", DOTS)
def test_a_way_for_up_to_a_tile_of_tokens(role):
    for tokens in range(1, MOST_ROWS + 1):
        for columns in (32, 1024, 3072, 8192):
            way = tiling(role, tokens, columns)
            assert way.rows >= tokens
            assert way.dot or way.columns >= columns
            assert tiling(role, tokens, columns, packed=True).dot == (tokens > 8 or columns > MOST_COLUMNS)
    assert tiling(role, MOST_ROWS + 1, 1024) is None
    assert not tiling(role, 1, 1024).dot
    assert max(SUMS[role]) <= MOST_ROWS
