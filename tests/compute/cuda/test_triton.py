"""The kernels of the CUDA path: interpreted on the CPU, compiled without a device, and, where there is one, run on it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from core.interfaces.model import Weight, WeightName
from core.models.decoder import Decoder
from core.testing.compute import ComputeBackendContract
from core.testing.inputs import PagedSequences, random_weights, tiny_spec
from quant_wint4.pack import GroupInt4
from quant_wint8.pack import RowInt8

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
# Of the contract, which runs whole on a device: what reaches the kernels. The interpreter takes its time.
CHOSEN = "not TestContract or whole_decoder and bfloat16 and half"


def child(*arguments, **env):
    path = os.pathsep.join(filter(None, sys.path))
    env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | env
    command = [sys.executable, *map(str, arguments)]
    ended = subprocess.run(command, check=False, env=env, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_interpreted_on_the_cpu_they_compute_what_they_should():
    said = child("-m", "pytest", "-q", "-p", "no:cacheprovider", HERE / "interpreted", "-k", CHOSEN, TRITON_INTERPRET="1")
    assert " passed" in said
    assert " skipped" not in said


def test_they_compile_for_a_device_that_is_not_there(tmp_path):
    assert child(HERE / "compiled.py", TRITON_CACHE_DIR=tmp_path).split() == ["True"] * 25


@pytest.mark.gpu
class TestTritonOnDevice(ComputeBackendContract):
    def make(self, dtype):
        from core.compute.torch_backend.triton.backend import TritonBackend

        return TritonBackend("cuda:0", dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 3, 16, 40])
def test_kernels_placed_early_give_the_same_bits(tokens):
    """While the kernel before ends, a program may only read weights. A replay leaves no time between kernels."""
    import torch

    from core.compute.torch_backend.triton.backend import TritonBackend
    from core.interfaces.graph import StepShape

    spec = tiny_spec(num_layers=12, hidden=256, num_heads=8, num_kv_heads=2, head_dim=64, intermediate=512)
    found = []
    for overlap in (False, True):
        backend = TritonBackend("cuda:0", "bfloat16", overlap=overlap)
        decoder = Decoder.load(spec, random_weights(spec).values(), backend)
        kv, paged = backend.kv_cache(spec, 1536, 16), PagedSequences(1536, 16)
        decoder.forward(backend.upload(paged.step({s: [1 + s] * (40 + 9 * s) for s in range(tokens)}), spec, kv), kv)
        step = backend.upload(paged.step({s: [s + 3] for s in range(tokens)}), spec, kv)
        static = backend.static_step(StepShape("decode", tokens, tokens), spec, kv)
        static.fill(step)
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            decoder.forward(static, kv)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = decoder.forward(static, kv)
        for _ in range(50):
            graph.replay()
            found.append(logits.cpu().clone())
    assert all(torch.equal(each, found[0]) for each in found)


@pytest.mark.gpu
@pytest.mark.parametrize("quantizer", [RowInt8(), GroupInt4(64)], ids=["wint8", "wint4"])
def test_on_a_device_packed_weights_are_multiplied_by_as_they_are(quantizer):
    from core.compute.torch_backend.triton.backend import TritonBackend

    backend = TritonBackend("cuda:0", "bfloat16")
    random = np.random.default_rng(0)
    weight = random.standard_normal((384, 256)).astype(np.float32)
    spec = tiny_spec(hidden=384, intermediate=256)
    down = backend.place(Weight(WeightName("down", 0), (weight,)), spec, quantizer)
    kit = ComputeBackendContract()
    for tokens in (1, 2, 4, 9, 16, 40):
        kit.check_linear(backend, down, quantizer.unpack(quantizer.pack(weight)), f"{tokens} tokens", tokens)
