"""The product of fp8 as Triton kernels, against the same in plain torch."""

import ml_dtypes
import numpy as np
import pytest
import torch

from core.compute.torch_backend import fp8, fp8_codes, fp8_kernel
from core.compute.torch_backend.backend import TorchBackend
from core.compute.torch_backend.triton.backend import TritonBackend
from core.interfaces.model import WeightName
from core.testing.inputs import random_weights, tiny_spec
from quant_fp8.pack import BlockFp8


def weights(rows, columns):
    random = np.random.default_rng(rows + columns)
    codes = (random.standard_normal((rows, columns)) * 100).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn)
    scale = random.random((-(-rows // 128), -(-columns // 128)), dtype=np.float32) + np.float32(0.1)
    return torch.from_numpy(codes.view(np.uint8)).view(torch.float8_e4m3fn), torch.from_numpy(scale)


def activations(tokens, columns, dtype):
    generator = torch.Generator().manual_seed(tokens)
    return (torch.randn(tokens, columns, generator=generator) * torch.logspace(-6, 4, tokens)[:, None]).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("columns", [128, 300, 1280])
def test_activations_are_rounded_alike_to_the_bit(dtype, columns):
    x = activations(7, columns, dtype)
    x[3] = 0
    for given in (x, activations(7, 2 * columns, dtype)[:, :columns]):  # rows that lie apart
        expected, got = fp8_codes.by_token(given), fp8_kernel.quantize(given)
        assert torch.equal(got[0].view(torch.uint8), expected[0].view(torch.uint8))
        assert torch.equal(got[1], expected[1])


def test_every_step_and_what_lies_between_two():
    """All 127 codes of either sign, the middles between them, and numbers just beside these."""
    steps = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    middles = (steps[:-1] + steps[1:]) / 2
    positive = np.concatenate([steps, middles, np.nextafter(middles, np.float32(0)), np.nextafter(middles, np.float32(448))])
    row = np.concatenate([positive, -positive])
    groups = -(-len(row) // 127)
    x = np.full((groups, 128), 448, np.float32)  # each group has the largest, so that its scale is 1
    x[:, :127] = np.pad(row, (0, groups * 127 - len(row))).reshape(groups, 127)
    x = torch.from_numpy(x.reshape(1, -1))
    codes, scale = fp8_kernel.quantize(x)
    assert (scale == 1).all()
    assert np.array_equal(codes.float().numpy(), x.numpy().astype(ml_dtypes.float8_e4m3fn).astype(np.float32))


@pytest.mark.parametrize(
    ("tokens", "rows", "columns"), [(1, 128, 128), (5, 200, 300), (16, 40, 576), (20, 260, 257), (130, 140, 130)]
)
def test_the_product(monkeypatch, tokens, rows, columns):
    if tokens > 64:
        monkeypatch.setattr(fp8_kernel, "tile", lambda tokens: (128, 128, 8, 3))
    codes, scale = weights(rows, columns)
    x = activations(tokens, columns, torch.bfloat16)
    expected = fp8_codes.emulated(x, codes, scale, torch.float32)
    got = fp8_kernel.product(x, codes, scale, torch.float32)
    assert float(((got - expected).norm(dim=1) / expected.norm(dim=1)).max()) < 1e-6
    short = fp8_kernel.product(x, codes, scale, torch.bfloat16)
    assert short.dtype == torch.bfloat16
    assert torch.allclose(short.float(), expected, rtol=2**-7, atol=1e-6 * float(expected.abs().max()))


def test_a_row_is_the_same_whoever_is_beside_it():
    codes, scale = weights(200, 300)
    x = activations(8, 300, torch.bfloat16)
    together = fp8_kernel.product(x, codes, scale, torch.float32)
    for number in (0, 5):
        alone = fp8_kernel.product(x[number : number + 1], codes, scale, torch.float32)
        assert torch.allclose(alone[0], together[number], rtol=1e-6, atol=0)


def test_no_tokens_and_one_that_is_no_number():
    codes, scale = weights(40, 130)
    assert fp8_kernel.product(torch.zeros(0, 130), codes, scale, torch.float32).shape == (0, 40)
    x = activations(3, 130, torch.float32)
    x[1, 129] = float("nan")
    out = fp8_kernel.product(x, codes, scale, torch.float32)
    assert out[1].isnan().all()
    assert not out[[0, 2]].isnan().any()


def test_a_backend_multiplies_by_it(monkeypatch):
    """A whole operation of the CUDA path, against the plain one with the emulation."""
    spec = tiny_spec(hidden=160, intermediate=136)
    layer = random_weights(spec)
    hidden = activations(4, 160, torch.float32) * 10

    def gated(backend):
        names = WeightName("norm", 0, "post"), WeightName("gate_up", 0)
        norm, weight = (backend.place(layer[name], spec, BlockFp8()) for name in names)
        return weight.format, backend.gate_up(hidden.clone(), norm, weight)

    emulated, expected = gated(TorchBackend("cpu", "float32", threads=1))
    monkeypatch.setattr(fp8, "native_product", lambda device: fp8_kernel.product)
    native, got = gated(TritonBackend("cpu", "float32", threads=1))
    assert emulated == f"{native}, emulated in float32"
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
