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
WORK = 84 << 20  # 61 MiB were seen
READ = 40 << 20  # 4 MiB were seen

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


SAVE = """
import json, re, sys
from pathlib import Path
from core.saving import save_packed
import core.models.loading, core.models.packed, core.models.safetensors_writer, ml_dtypes, core.text.tokenizer

def memory(key):
    return int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

before = memory("VmRSS")
saved = save_packed(["--model", sys.argv[1], "--quantization", sys.argv[2]], Path(sys.argv[3]), 40 << 20)
print(json.dumps({"written": saved.nbytes, "peak": memory("VmHWM") - before}))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    random = RandomCheckpoint(CONFIG, 0)
    tensors = {name: random.tensor(name) for name in random.names()}
    return made.write_checkpoint(tmp_path_factory.mktemp("packing") / "pt", CONFIG, tensors)


def measured(*command):
    ran = subprocess.run([sys.executable, "-c", *map(str, command)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_saving_and_loading_what_was_saved(checkpoint, tmp_path):
    """Saving does not even hold the packed model; loading what was saved holds little more than that, and packs nothing."""
    saved = measured(SAVE, checkpoint, "wint8", tmp_path / "packed")
    assert saved["peak"] < WORK < 0.75 * saved["written"] < 0.53 * UNPACKED
    loaded = measured(MEASURE, tmp_path / "packed", "wint8")
    assert loaded["held"] == pytest.approx(saved["written"], rel=0.05)
    assert loaded["peak"] < loaded["held"] + READ


@pytest.mark.parametrize(("quantization", "share"), [("wint8", 0.53), ("wint4", 0.3)])
def test_loading_holds_little_more_than_what_is_loaded(checkpoint, quantization, share):
    found = measured(MEASURE, checkpoint, quantization)
    assert found["held"] == pytest.approx(found["said"], rel=0.05)
    assert found["held"] < share * UNPACKED
    assert found["peak"] < found["held"] + ROOM < UNPACKED
