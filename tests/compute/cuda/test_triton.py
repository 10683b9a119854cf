"""The kernels of the CUDA path: interpreted on the CPU, compiled without a device, and, where there is one, run on it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.testing.compute import ComputeBackendContract

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
# Of the contract, which runs whole on a device: what reaches the kernels. The interpreter takes its time.
CHOSEN = "not TestContract or (whole_decoder or alone_equals) and bfloat16 and (half or alone)"


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
    assert child(HERE / "compiled.py", TRITON_CACHE_DIR=tmp_path).split() == ["True"] * 13


@pytest.mark.gpu
class TestTritonOnDevice(ComputeBackendContract):
    def make(self, dtype):
        from core.compute.torch_backend.triton.backend import TritonBackend

        return TritonBackend("cuda:0", dtype)
