"""Packing while loading: neither the unpacked model nor twice the packed one is ever in memory. In a process of its own."""

import json
import subprocess
import sys

import pytest

from core.models.random_format import RandomCheckpoint, shape
from tests.models import checkpoints as made

CONFIG = shape("Ernie4_5ForCausalLM", 8, 1024, 16, 2, 128, 3072, 2000, 4096, 500000.0)
UNPACKED = 2 * (8 * 14_155_776 + 2000 * 1024)
ROOM = 96 << 20  # 61 to 73 MiB were seen: a matrix in float32, its steps and codes, what torch loads late and malloc keeps

MEASURE = """
import json, re, sys
from pathlib import Path
from core.compose import compose
from core.compose.build import fetched, load_model
from core.compute.torch_backend import quantized
import torch

def memory(key):
    return int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

torch.set_num_threads(1)
assert quantized.int8_works(torch.bfloat16) and quantized.int4_works()
plan = fetched(compose(["--model", sys.argv[1], "--quantization", sys.argv[2], "--dtype", "bfloat16", "--threads", "1"]))
before = memory("VmRSS")
decoder = load_model(plan)
held = decoder.embedding.nbytes + sum(linear.nbytes for linear in decoder.linears)
print(json.dumps({"held": held, "said": plan.facts["memory.weights_bytes"], "peak": memory("VmHWM") - before}))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    random = RandomCheckpoint(CONFIG, 0)
    tensors = {name: random.tensor(name) for name in random.names()}
    return made.write_checkpoint(tmp_path_factory.mktemp("packing") / "pt", CONFIG, tensors)


@pytest.mark.parametrize(("quantization", "share"), [("wint8", 0.53), ("wint4", 0.3)])
def test_loading_holds_little_more_than_what_is_loaded(checkpoint, quantization, share):
    command = [sys.executable, "-c", MEASURE, str(checkpoint), quantization]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["held"] == pytest.approx(found["said"], rel=0.05)
    assert found["held"] < share * UNPACKED
    assert found["peak"] < found["held"] + ROOM < UNPACKED
