"""Packed weights read where they lie: what they stand for is what their quantizer says, however many tokens there are."""

import numpy as np
import pytest
import torch

from core.compute.torch_backend.triton.backend import TritonBackend
from core.compute.torch_backend.triton.packed import TiledLinear
from core.interfaces.model import Weight, WeightName
from core.interfaces.quantizer import ByRole
from core.testing import reference
from core.testing.inputs import random_weights, tiny_spec
from quant_wint4.pack import GroupInt4
from quant_wint8.pack import RowInt8

FORMATS = {
    "wint8": RowInt8(),
    "wint4": GroupInt4(32),
    "wint4 padded": GroupInt4(64, pad=True),
    "wint4 a row": GroupInt4(0),
}


@pytest.mark.parametrize("name", FORMATS)
def test_packed_weights_are_multiplied_by_as_they_are(name):
    quantizer, backend = FORMATS[name], TritonBackend("cpu", "float32", threads=1)
    spec = tiny_spec(num_layers=1, hidden=96, intermediate=160)
    random = np.random.default_rng(0)
    parts = tuple(random.standard_normal((160, 96)).astype(np.float32) for _ in range(2))
    values = np.concatenate([quantizer.unpack(quantizer.pack(part)) for part in parts])
    gate_up = backend.place(Weight(WeightName("gate_up", 0), parts), spec, quantizer)
    norm = backend.place(Weight(WeightName("norm", 0, "post"), (np.ones(96, np.float32),)), spec, None)
    assert isinstance(gate_up, TiledLinear)
    assert gate_up.nbytes == quantizer.pack(np.concatenate(parts)).nbytes
    assert np.array_equal(gate_up.unpacked(torch.float32).numpy(), values)
    for tokens in (1, 3, 20):
        hidden = random.standard_normal((tokens, 96)).astype(np.float32)
        got = backend.gate_up(torch.from_numpy(hidden), norm, gate_up).numpy()
        expected = reference.gated(reference.rms_norm(hidden.astype(np.float64), np.ones(96), spec.norm_eps) @ values.T)
        assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_is_packed_beside_linears_that_are_not(tied):
    spec = tiny_spec(hidden=48, vocab=333, tied_head=tied)
    quantizer, backend = ByRole(None, RowInt8()), TritonBackend("cpu", "float32", threads=1)
    placed = {name: backend.place(weight, spec, quantizer) for name, weight in random_weights(spec).items()}
    head = placed[WeightName("head")]
    assert isinstance(head, TiledLinear)
    assert not isinstance(placed[WeightName("o", 0)], TiledLinear)
    weight = random_weights(spec)[WeightName("head")].parts[0]
    values = RowInt8().unpack(RowInt8().pack(weight)).astype(np.float64)
    for tokens in (1, 5, 17):
        x = np.random.default_rng(tokens).standard_normal((tokens, 48)).astype(np.float32)
        assert np.abs(head.logits(torch.from_numpy(x)).numpy() - x @ values.T).max() < 1e-5 * np.abs(x @ values.T).max()


@pytest.mark.parametrize("name", FORMATS)
def test_a_packed_head_and_a_residual(name):
    quantizer, backend = FORMATS[name].of_role("down"), TritonBackend("cpu", "float32", threads=1)
    random = np.random.default_rng(1)
    weight = random.standard_normal((48, 96)).astype(np.float32)
    values = torch.from_numpy(quantizer.unpack(quantizer.pack(weight)))
    spec = tiny_spec(num_layers=1, hidden=48, intermediate=96)
    down = backend.place(Weight(WeightName("down", 0), (weight,)), spec, quantizer)
    for tokens in (1, 5, 17):
        x, residual = (torch.from_numpy(random.standard_normal((tokens, width)).astype(np.float32)) for width in (96, 48))
        expected = residual + x @ values.T
        assert torch.allclose(backend.linear_add(x, down, residual.clone()), expected, atol=1e-4)
        assert torch.allclose(down.logits(x), x @ values.T, atol=1e-4)
