"""The product of fp8, compiled without a device, and on one."""

import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from core.compute.torch_backend import fp8, fp8_codes
from core.compute.torch_backend.linear import Target
from core.interfaces.quantizer import Packed

HERE = Path(__file__).parent
CUDA = torch.device("cuda:0")


def test_it_compiles_for_devices_that_are_not_there(tmp_path):
    """On 9.0 Triton takes the smallest tile to float16, which loses nothing: of that size it has no instruction for e4m3."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(HERE / "compiled_fp8.py")]
    ended = subprocess.run(command, check=False, env=env, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == ["89 16 e4m3", "89 4096 e4m3", "90 16 wider", "90 4096 e4m3"]


def packed(rows, columns):
    random = np.random.default_rng(rows)
    codes = (random.standard_normal((rows, columns)) * 100).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn)
    scale = random.random((-(-rows // 128), -(-columns // 128)), dtype=np.float32) + np.float32(0.1)
    return Packed((rows, columns), {"codes": codes, "scale": scale})


def activations(tokens, columns, dtype):
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(tokens, columns, generator=generator) * torch.logspace(-2, 3, tokens)[:, None]).to(dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_on_a_device_activations_are_rounded_alike_to_the_bit(dtype):
    from core.compute.torch_backend import fp8_kernel

    for columns in (1024, 3072, 577):
        x = activations(64, columns, dtype).to(CUDA)
        expected, got = fp8_codes.by_token(x), fp8_kernel.quantize(x)
        assert torch.equal(got[0].view(torch.uint8), expected[0].view(torch.uint8))
        assert torch.equal(got[1], expected[1])


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(2560, 1024), (1024, 2048), (6144, 1024), (1024, 3072), (960, 576), (130, 257)])
@pytest.mark.parametrize("tokens", [1, 8, 16, 17, 100, 512, 600])
def test_on_a_device_the_product_is_that_of_plain_torch(shape, tokens):
    weights = packed(*shape)
    x = activations(tokens, shape[1], torch.bfloat16)
    expected = fp8.fp8_block("o", weights, Target(torch.device("cpu"), torch.bfloat16)).logits(x)
    placed = fp8.fp8_block("o", weights, Target(CUDA, torch.bfloat16))
    assert placed.format == "e4m3 in blocks of 128, activations e4m3 by token"
    got = placed.logits(x.to(CUDA)).cpu()
    # Tensor cores add 128 products with 13 bits behind the point of the largest, or more.
    assert float(((got - expected).norm(dim=1) / expected.norm(dim=1)).max()) < 1e-3
    short = placed(x.to(CUDA)).cpu().float()
    assert float(((short - expected).norm(dim=1) / expected.norm(dim=1)).max()) < 4e-3


@pytest.mark.gpu
def test_on_a_device_a_row_is_the_same_whoever_is_beside_it():
    weights = packed(2560, 1024)
    placed = fp8.fp8_block("qkv", weights, Target(CUDA, torch.bfloat16))
    x = activations(600, 1024, torch.bfloat16).to(CUDA)
    alone = torch.cat([placed.logits(row[None]) for row in x[:8]])
    assert torch.equal(placed.logits(x[:8]), alone), "the same tile computes one row or eight"
    for tokens in (64, 600):
        together = placed.logits(x[:tokens])[:8]
        assert float(((together - alone).norm(dim=1) / alone.norm(dim=1)).max()) < 1e-3
