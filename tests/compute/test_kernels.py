"""Which kernels compute: as asked, as possible, and never silently."""

import logging
import sys
import types

import pytest
import torch

from core.compute.torch_backend import kernels
from core.compute.torch_backend.backend import TorchBackend
from core.compute.torch_backend.native import build, check, library
from core.compute.torch_backend.native.backend import NativeBackend
from core.compute.torch_backend.triton import tables
from core.errors import UserError


@pytest.fixture
def not_built(monkeypatch):
    def refuse(*_, **__):
        raise build.NotBuiltError("no C++ compiler was found")

    monkeypatch.setattr(library, "function", refuse)


def said(caplog):
    return [(record.levelno, record.getMessage()) for record in caplog.records if record.name == "dovetail.compute"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_native_kernels_are_tried_out_and_used(dtype, caplog):
    caplog.set_level(logging.INFO)
    for asked in ("auto", "native"):
        assert type(kernels.on_cpu(asked, dtype, 1)) is NativeBackend
    message = f"a step's operations are computed by native kernels: {library.instructions()}"
    assert said(caplog) == [(logging.INFO, message)] * 2


def test_the_reference_is_used_when_asked_for(caplog):
    caplog.set_level(logging.INFO)
    assert type(kernels.on_cpu("reference", "bfloat16", 1)) is TorchBackend
    assert said(caplog) == [(logging.INFO, "a step's operations are computed by plain torch, as asked for")]


def test_without_a_library_auto_says_so_and_native_is_an_error(not_built, caplog):
    assert type(kernels.on_cpu("auto", "bfloat16", 1)) is TorchBackend
    what = "a step's operations are computed by plain torch, which is slower: no C++ compiler was found"
    assert said(caplog) == [(logging.WARNING, what)]
    with pytest.raises(UserError) as refused:
        kernels.on_cpu("native", "bfloat16", 1)
    (problem,) = refused.value.problems
    assert problem.what == "the native kernels cannot be had: no C++ compiler was found"
    assert problem.remedies == ("--torch-kernels auto, for plain torch",)


def test_half_precision_is_left_to_plain_torch(caplog):
    assert type(kernels.on_cpu("auto", "float16", 1)) is TorchBackend
    ((level, message),) = said(caplog)
    assert level == logging.WARNING
    assert message.endswith("which is slower: they compute in bfloat16 and float32, not in float16")


def test_kernels_that_compute_wrongly_are_not_used(monkeypatch, caplog):
    def halved(self, q, *rest):
        return attention(self, q, *rest) / 2

    attention = NativeBackend.attention
    monkeypatch.setattr(NativeBackend, "attention", halved)
    assert type(kernels.on_cpu("auto", "float32", 1)) is TorchBackend
    ((_, message),) = said(caplog)
    assert "tried out, they compute attention wrongly: off by 0.5" in message


def test_the_check_looks_at_every_kind_of_result():
    names = {name for name, _ in check.results(TorchBackend("cpu", "float32", 1))}
    assert names == {"queries", "attention", "the feed-forward", "logits"}


def test_heads_of_odd_width_are_left_to_plain_torch_and_it_is_said(caplog):
    from core.testing.inputs import tiny_spec

    backend = NativeBackend("float32", 1)
    backend.kv_cache(tiny_spec(head_dim=24), 4, 16)
    message = "attention and rope are computed in plain torch: heads of 24 are no multiple of 16 up to 1024"
    assert said(caplog) == [(logging.WARNING, message)]


@pytest.fixture
def device(monkeypatch):
    """What this torch is told of a CUDA device that is not there."""
    capability = [(9, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[0])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    return capability


def test_on_cuda_the_kernels_are_tritons(device, monkeypatch, caplog):
    made = []
    fake = types.ModuleType("core.compute.torch_backend.triton.backend")
    fake.TritonBackend = lambda *given, **options: made.append((given, options)) or made
    fake.this_device = lambda _: tables.Device("a device that nobody has tuned", ".".join(map(str, device[0])), "3.6")
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    caplog.set_level(logging.INFO)
    assert kernels.on_cuda("auto", "cuda:1", "bfloat16") is made
    device[0] = (8, 6)
    assert kernels.on_cuda("native", "cuda:1", "bfloat16") is made
    assert kernels.on_cuda("auto", "cuda:1", "bfloat16", deterministic=True) is made
    assert [options["overlap"] for _, options in made] == [True, False, False]
    assert [options["deterministic"] for _, options in made] == [False, False, True]
    message = "a step's operations are computed by native kernels: Triton on NVIDIA H100"
    divided = [f"native kernels are divided by {tables.shipped(capability).origin}" for capability in ("9.0", "8.6")]
    assert [text for _, text in said(caplog)] == [divided[0], message, divided[1], message, message]
    assert [options["table"] and options["table"].origin for _, options in made] == [
        tables.shipped("9.0").origin,
        tables.shipped("8.6").origin,
        None,
    ]


def test_on_cuda_plain_torch_is_said(device, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "core.compute.torch_backend.triton.backend", None)
    caplog.set_level(logging.INFO)
    assert type(kernels.on_cuda("reference", "cuda:0", "bfloat16")) is TorchBackend
    assert type(kernels.on_cuda("auto", "cuda:0", "bfloat16")) is TorchBackend
    asked, (level, message) = said(caplog)
    assert asked == (logging.INFO, "a step's operations are computed by plain torch, as asked for")
    assert level == logging.WARNING
    assert message.startswith("a step's operations are computed by plain torch, which is slower: Triton cannot be imported: ")
    with pytest.raises(UserError, match="the native kernels cannot be had: Triton cannot be imported"):
        kernels.on_cuda("native", "cuda:0", "bfloat16")


def test_on_an_old_device_native_is_an_error(device):
    device[0] = (7, 5)
    with pytest.raises(UserError) as refused:
        kernels.on_cuda("native", "cuda:0", "bfloat16")
    (problem,) = refused.value.problems
    what = "the native kernels cannot be had: they are for compute capability 8.0 and newer, and cuda:0 has 7.5"
    assert problem.what == what
