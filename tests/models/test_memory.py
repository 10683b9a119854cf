"""Loading holds little more than what is loaded: peak resident memory, measured in a process of its own."""

import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from core.models.random_format import RandomCheckpoint, shape
from tests.models import checkpoints as made

# 293 MB in bfloat16; as in ERNIE-4.5-0.3B, the embedding is the largest tensor by far
CONFIG = shape("Ernie4_5ForCausalLM", 6, 1024, 16, 2, 128, 3072, 60000, 4096, 500000.0)
SIZE = 2 * 146_387_968

MEASURE = """
import json, re, sys
from pathlib import Path
import ml_dtypes, numpy as np
from core.models import loading, plugin, sources
from core.models.decoder import Decoder

def memory(key):
    return int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

path, backend_name = sys.argv[1:]
formats = {offer.name: offer.create() for offer in plugin.register_checkpoint_formats()}
folder = sources.resolve(path, {}, formats)
config = loading.read_config(folder, formats)
family = next(offer.family() for offer in plugin.register_models() if config["architectures"][0] in offer.architectures)
spec = family.spec(config)

class Copies:
    def place(self, weight, spec, quantizer):
        if weight.tied:
            return None
        out = np.empty(spec.shape(weight.name.role), ml_dtypes.bfloat16)
        at = 0
        for part in weight.parts:
            out[at : at + len(part)] = part
            at += len(part)
        return out

if backend_name == "copies":
    backend = Copies()
else:
    from core.compute.torch_backend.backend import TorchBackend
    backend = TorchBackend("cpu", "bfloat16", threads=1)
    import torch
    torch.nn.functional.linear(torch.ones(8, 64, dtype=torch.bfloat16), torch.ones(64, 64, dtype=torch.bfloat16))
if folder.format == "gguf":
    import gguf
checkpoint = loading.open_checkpoint(folder, formats)
before = memory("VmRSS")
decoder = Decoder.load(spec, loading.weights(checkpoint, family, spec), backend)
if backend_name == "copies":
    placed = sum(array.nbytes for layer in decoder.layers for array in
                 (layer.input_norm, layer.qkv, layer.o, layer.post_norm, layer.gate_up, layer.down))
    placed += decoder.embedding.nbytes + decoder.final_norm.nbytes
else:
    placed = decoder.embedding.nbytes + sum(linear.nbytes for linear in decoder.linears)
print(json.dumps({"placed": placed, "peak": memory("VmHWM") - before, "left": memory("VmRSS") - before}))
"""


def measure(path, backend):
    ran = subprocess.run([sys.executable, "-c", MEASURE, str(path), backend], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.fixture(scope="module")
def tensors():
    checkpoint = RandomCheckpoint(CONFIG, 0)
    return {name: checkpoint.tensor(name) for name in checkpoint.names()}


@pytest.fixture(scope="module")
def pt(tensors, tmp_path_factory):
    return made.write_checkpoint(tmp_path_factory.mktemp("memory") / "pt", CONFIG, tensors)


@pytest.mark.parametrize("backend", ["copies", "torch"])
def test_pt(pt, backend):
    found = measure(pt, backend)
    assert found["placed"] >= SIZE
    assert found["peak"] < 1.3 * found["placed"]
    if backend == "copies":  # torch's allocator keeps some of what it freed
        assert found["left"] < 1.1 * found["placed"]


def test_paddle(tensors, tmp_path):
    found = measure(made.write_checkpoint(tmp_path, CONFIG, made.paddle_arrays(tensors, CONFIG)), "copies")
    assert found["placed"] >= SIZE
    assert found["peak"] < 1.3 * found["placed"]
    assert found["left"] < 1.1 * found["placed"]


def test_release_gives_memory_back(pt):
    """What the streaming rests on: without release, the mapped file would count beside what was placed."""
    code = """
import re, sys
from pathlib import Path
import numpy as np
from core.models.safetensors_file import SafetensorsFile
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
file = SafetensorsFile(Path(sys.argv[1]))
view = file.tensor("model.embed_tokens.weight").view(np.uint16)
before = resident()
view.max()
touched = resident()
file.release("model.embed_tokens.weight")
print(touched - before, resident() - before)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code, str(pt / "model.safetensors")], capture_output=True, text=True, check=True
    )
    touched, left = (int(number) for number in ran.stdout.split())
    assert touched > 0.9 * 2 * 60000 * 1024
    assert left < 0.1 * touched


@pytest.mark.demo
def test_the_demo():
    found = measure("demo", "torch")
    assert found["peak"] < 1.3 * found["placed"]


def test_the_shape_is_what_it_says(tensors):
    assert sum(array.nbytes for array in tensors.values()) == SIZE
    assert all(array.dtype == np.dtype(ml_dtypes.bfloat16) for array in tensors.values())
