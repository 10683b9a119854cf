"""Copies of KV pages in host memory."""

import numpy as np
import pytest
import torch

from core.compute.torch_backend import host_pages
from core.compute.torch_backend.backend import TorchBackend
from core.errors import EngineDeadError
from core.testing.inputs import tiny_spec


def ints(*numbers):
    return np.array(numbers, np.int32)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def kv(request, monkeypatch):
    monkeypatch.setattr(host_pages, "CHUNK_BYTES", 10_000)  # several chunks, and not all full
    kv = TorchBackend(request.param, "bfloat16").kv_cache(tiny_spec(), 12, 4)
    for tensor in (*kv.keys, *kv.values):
        tensor.copy_(torch.randn(tensor.shape))
    return kv


def contents(kv, page):
    return torch.stack([tensor[page] for tensor in (*kv.keys, *kv.values)]).cpu()


def test_what_is_saved_comes_back_elsewhere(kv):
    before = [contents(kv, page) for page in range(12)]
    host = kv.host_pages(9)
    saved = host.save(ints(3, 1, 11), ints(0, 8, 5))
    saved.wait()
    assert saved.done()
    for tensor in (*kv.keys, *kv.values):
        tensor[3].zero_()
    host.restore(ints(8, 0), ints(6, 7)).wait()
    host.close()
    for page, came_from in {6: 1, 7: 3, 1: 1, 11: 11, 0: 0, 8: 8}.items():
        assert torch.equal(contents(kv, page), before[came_from]), page


def test_copies_are_made_in_order(kv):
    before = [contents(kv, page) for page in range(12)]
    host = kv.host_pages(2)
    host.save(ints(0), ints(1))
    host.restore(ints(1), ints(5))
    host.save(ints(2), ints(1))  # takes the place of what is still to be restored
    host.restore(ints(1), ints(6)).wait()
    host.close()
    assert torch.equal(contents(kv, 5), before[0])
    assert torch.equal(contents(kv, 6), before[2])


def test_a_copy_sees_what_was_written_before_it(kv):
    host = kv.host_pages(1)
    for _ in range(20):
        value = torch.randn(4, *kv.keys[0].shape[2:], dtype=torch.bfloat16)
        slots = torch.arange(8, 12, device=kv.keys[0].device)
        kv.write(0, slots, value.to(slots.device), value.to(slots.device))
        host.save(ints(2), ints(0))
        host.restore(ints(0), ints(9)).wait()
        assert torch.equal(kv.keys[0][9].cpu(), value)
    host.close()


def test_a_copy_that_cannot_be_made_ends_the_engine():
    host = TorchBackend("cpu", "float32").kv_cache(tiny_spec(), 2, 4).host_pages(1)
    copying = host.save(ints(7), ints(0))
    with pytest.raises(EngineDeadError, match="KV pages cannot be copied"):
        copying.wait()
    with pytest.raises(EngineDeadError):
        copying.done()
    host.close()


def test_memory_is_taken_as_places_are_used(kv):
    host = kv.host_pages(1000)
    assert not host._places._chunks
    host.save(ints(0), ints(999)).wait()
    host.close()
    assert len(host._places._chunks) == 1
