"""What the backend finds out about the machine, and says when it is too small."""

import os

import numpy as np
import pytest
import torch

from core import host
from core.compute.torch_backend import machine
from core.compute.torch_backend.backend import TorchBackend
from core.errors import UserError
from core.host import usable_cores
from core.interfaces.model import Weight, WeightName
from core.testing.inputs import tiny_spec


@pytest.fixture
def cgroup(tmp_path, monkeypatch):
    """Files of a container's limits, by name."""
    monkeypatch.setattr(host, "_CGROUP", tmp_path)

    def write(**files):
        for name, text in files.items():
            (tmp_path / name.replace("_", ".")).write_text(text + "\n")

    return write


def test_a_container_without_limits_has_the_machine(cgroup):
    cgroup(memory_max="max", memory_current="123", cpu_max="max 100000")
    free, total = machine.free_and_total(torch.device("cpu"))
    assert 0 < free <= total
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))


def test_a_container_is_told_of_its_own_memory(cgroup):
    """Of 64 MiB, 24 are used, of which 10 are pages of mapped files."""
    cgroup(
        memory_max=str(64 << 20), memory_current=str(24 << 20), memory_stat=f"anon {14 << 20}\ninactive_file {10 << 20}\nslab 5"
    )
    assert machine.free_and_total(torch.device("cpu")) == (50 << 20, 64 << 20)


@pytest.mark.parametrize(("quota", "cores"), [("50000 100000", 1), ("100000 100000", 1)])
def test_a_container_is_told_of_its_own_cores(cgroup, quota, cores):
    cgroup(cpu_max=quota)
    assert usable_cores() == cores


def test_threads_are_set_as_asked():
    before = torch.get_num_threads()
    try:
        TorchBackend("cpu", "float32", threads=3)
        assert torch.get_num_threads() == 3
        TorchBackend("cpu", "float32")
        assert torch.get_num_threads() == usable_cores()
    finally:
        torch.set_num_threads(before)


def test_too_many_kv_pages_are_refused_before_they_are_allocated(monkeypatch):
    backend = TorchBackend("cpu", "float32", threads=1)
    monkeypatch.setattr(machine, "free_and_total", lambda device: (1 << 30, 2 << 30))
    with pytest.raises(UserError) as refused:
        backend.kv_cache(tiny_spec(), 10**5, 64)
    assert str(refused.value) == (
        "there is not enough memory for 100000 KV pages of 64 tokens (3.05 GiB): 1.00 GiB of cpu is free\n"
        "  remedy: lower --num-gpu-blocks-override, or leave it out to size the pages from memory\n"
        "  remedy: lower --max-num-seqs or --max-model-len"
    )


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 4 GiB"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 17 bytes"),
    ],
)
def test_weights_that_do_not_fit(monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    backend = TorchBackend("cpu", "float32", threads=1)
    monkeypatch.setattr(torch, "empty", fail)
    with pytest.raises(UserError) as refused:
        backend.place(Weight(WeightName("o", 3), (np.zeros((32, 64), np.float32),)), tiny_spec(), None)
    assert str(refused.value) == (
        "there is not enough memory for the weights of the model, at layers.3.o\n"
        "  remedy: take a smaller model\n"
        "  remedy: pack the weights: --quantization (--list-plugins shows what is installed)\n"
        "  remedy: free memory, or use a machine that has more"
    )


def test_other_errors_are_left_as_they_are():
    with pytest.raises(RuntimeError, match="shape"), machine.memory_for("nothing", "nothing"):
        raise RuntimeError("shape mismatch")
