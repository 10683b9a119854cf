"""fp8 in plain torch, by which the kernel is measured: how activations are rounded, what is multiplied, what is held."""

import sys

import ml_dtypes
import numpy as np
import pytest
import torch

from core.compute.torch_backend import backend, fp8, fp8_codes
from core.compute.torch_backend.linear import Target
from core.errors import UserError
from core.interfaces.quantizer import Packed

CPU = torch.device("cpu")
SHAPES = [(2560, 1024), (1024, 3072), (960, 576), (130, 257), (3, 40)]


def packed(rows, columns, seed=0):
    random = np.random.default_rng(seed)
    codes = (random.standard_normal((rows, columns)) * 100).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn)
    scale = random.random((-(-rows // 128), -(-columns // 128)), dtype=np.float32) + np.float32(0.1)
    each = np.repeat(np.repeat(scale, 128, 0), 128, 1)[:rows, :columns]
    return Packed((rows, columns), {"codes": codes, "scale": scale}), codes.astype(np.float32) * each


def activations(rows, columns, dtype=torch.bfloat16):
    """Rows of very different size, each with an outlier."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, columns, generator=generator) * torch.logspace(-2, 3, rows)[:, None]
    x[:, 3] *= 20
    return x.to(dtype)


def test_activations_are_rounded_by_token_and_group():
    x = activations(9, 300)
    codes, scale = fp8_codes.by_token(x)
    assert (codes.dtype, codes.shape, scale.dtype, scale.shape) == (torch.float8_e4m3fn, (9, 300), torch.float32, (9, 3))
    for group, columns in enumerate((slice(0, 128), slice(128, 256), slice(256, 300))):
        part = x[:, columns].float()
        assert torch.allclose(scale[:, group], part.abs().amax(1) / 448, rtol=1e-6)
        steps = (part * (1 / scale[:, group, None])).numpy()
        assert np.array_equal(codes[:, columns].float().numpy(), steps.astype(ml_dtypes.float8_e4m3fn).astype(np.float32))
        assert (codes[:, columns].float().abs().amax(1) == 448).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_is_multiplied_are_the_rounded_numbers(shape, dtype):
    weights, right = packed(*shape)
    x = activations(9, shape[1], dtype)
    placed = fp8.fp8_block("o", weights, Target(CPU, dtype))
    out, logits = placed(x), placed.logits(x)
    assert (out.dtype, logits.dtype) == (dtype, torch.float32)
    codes, scale = fp8_codes.by_token(x)
    rounded = codes.double() * scale.repeat_interleave(128, 1)[:, : shape[1]].double()
    exact = rounded @ torch.from_numpy(right).double().T
    for got, worst in ((out, 4e-3 if dtype == torch.bfloat16 else 2e-6), (logits, 2e-6)):
        assert float(((got.double() - exact).norm(dim=1) / exact.norm(dim=1)).max()) < worst
    unrounded = x.double() @ torch.from_numpy(right).double().T
    off = (exact - unrounded).norm(dim=1) / unrounded.norm(dim=1)
    assert float(off.max()) < 0.07


@pytest.mark.parametrize("rows", [fp8_codes.ROWS, 2 * fp8_codes.ROWS + 300])
def test_many_rows_are_taken_a_few_at_a_time(rows):
    weights, right = packed(rows, 64)
    x = activations(2, 64, torch.float32)
    out = fp8.fp8_block("head", weights, Target(CPU, torch.float32)).logits(x)
    assert torch.allclose(out, fp8_codes.values(*fp8_codes.by_token(x)) @ torch.from_numpy(right).T, rtol=1e-4, atol=1e-2)


def test_a_row_is_the_same_whoever_is_beside_it():
    """Float rounding alone: how many rows a multiplication has may decide in which order it sums."""
    weights, _ = packed(2560, 1024)
    placed = fp8.fp8_block("qkv", weights, Target(CPU, torch.bfloat16))
    x = activations(8, 1024)
    alone = torch.cat([placed.logits(row[None]) for row in x])
    together = placed.logits(x)
    assert float(((together - alone).norm(dim=1) / alone.norm(dim=1)).max()) < 1e-6
    loud = x.clone()
    loud[1:] *= 1000
    assert torch.equal(placed.logits(loud)[0], together[0]), "a neighbour's size reaches this row"


def test_a_token_of_zeros_and_one_that_is_no_number():
    weights, _ = packed(96, 200)
    placed = fp8.fp8_block("o", weights, Target(CPU, torch.bfloat16))
    x = activations(3, 200)
    x[0] = 0
    x[1, 5] = float("nan")
    out = placed(x)
    assert (out[0] == 0).all()
    assert out[1].isnan().all()
    assert torch.equal(out[2], placed(x[2:])[0])
    assert placed(x[:0]).shape == (0, 96)


def test_what_is_held_is_what_is_said_and_its_own():
    weights, _ = packed(2560, 1024)
    placed = fp8.fp8_block("qkv", weights, Target(CPU, torch.bfloat16))
    assert placed.nbytes == weights.nbytes == 2560 * 1024 + 20 * 8 * 4
    assert placed.format == "e4m3 in blocks of 128, activations e4m3 by token, emulated in float32"
    x = activations(2, 1024)
    before = placed(x)
    weights.arrays["codes"][:] = 0
    weights.arrays["scale"][:] = 0
    assert torch.equal(placed(x), before), "it kept arrays that may be mapped from a file"


def test_the_backend_knows_the_layout():
    assert backend.linear.KERNELS["fp8_block"] is fp8.fp8_block


@pytest.mark.parametrize(
    ("capability", "has"), [((8, 0), False), ((8, 6), False), ((8, 9), True), ((9, 0), True), ((10, 0), True)]
)
def test_which_devices_have_it(monkeypatch, capability, has):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setitem(sys.modules, "core.compute.torch_backend.fp8_kernel", type(sys)("kernel"))
    sys.modules["core.compute.torch_backend.fp8_kernel"].product = fp8_codes.emulated
    assert (fp8.native_product.__wrapped__(torch.device("cuda:0")) is not None) == has
    assert fp8.native_product.__wrapped__(CPU) is None


def test_a_device_without_triton_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setitem(sys.modules, "core.compute.torch_backend.fp8_kernel", None)
    with pytest.raises(UserError) as refused:
        fp8.native_product.__wrapped__(torch.device("cuda:0"))
    (problem,) = refused.value.problems
    assert problem.what.startswith("fp8 on cuda:0 needs Triton, which cannot be imported: ")
    assert problem.remedies == ("pip install triton", "--quantization wint8")
