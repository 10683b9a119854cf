"""Native kernels of a CPU in deterministic mode: a request's logits, to the bit, alone and in steps shared with others."""

import numpy as np
import pytest

from core.compose.composition import attempt
from core.compose.first_pass import first_pass
from core.compute.torch_backend import kernels
from core.compute.torch_backend.native.backend import NativeBackend
from core.errors import UserError
from core.interfaces.quantizer import ByRole
from core.plugin_manager import PluginManager
from core.testing.fakes import BlockInt8
from core.testing.inputs import random_weights, tiny_spec
from core.testing.neighbours import WAYS, Request, steps
from quant_wint4.pack import GroupInt4
from quant_wint8.pack import RowInt8

PROMPT = 300  # more keys than one task has where they are parted
SPEC = tiny_spec(hidden=64, num_heads=8, intermediate=160, vocab=333)
FORMATS = {
    "bfloat16": None,
    "float32": None,
    "wint8": RowInt8(),
    "wint4": GroupInt4(32),
    "a packed head": ByRole(None, RowInt8()),
}


@pytest.mark.parametrize("name", FORMATS)
def test_logits_are_the_same_to_the_bit_whoever_shares_the_steps(name):
    backend = NativeBackend("float32" if name == "float32" else "bfloat16", 1, deterministic=True)
    request = Request(backend, SPEC, PROMPT, FORMATS[name])
    alone = request.logits(steps("alone", PROMPT, 20))
    for way in WAYS:
        assert np.array_equal(request.logits(steps(way, PROMPT, 20)), alone), way


def test_in_bfloat16_neighbours_move_nothing_anyway_and_a_prompt_computed_anew_does():
    request = Request(NativeBackend("bfloat16", 1), SPEC, PROMPT)
    alone = request.logits(steps("alone", PROMPT, 20))
    assert np.array_equal(request.logits(steps("among others", PROMPT, 20)), alone)
    assert not np.array_equal(request.logits(steps("computed anew", PROMPT, 20)), alone), "this test can tell"


def test_it_is_not_left_to_plain_torch(monkeypatch):
    with pytest.raises(UserError) as refused:
        kernels.on_cpu("auto", "float16", 1, deterministic=True)
    (problem,) = refused.value.problems
    assert problem.what == (
        "what is deterministic are the native kernels, and they cannot be had: they compute in bfloat16 and float32, not in "
        "float16"
    )
    with pytest.raises(UserError, match="attention is left to plain torch, which picks how to add up by what a step has"):
        NativeBackend("float32", 1, deterministic=True).kv_cache(tiny_spec(head_dim=24), 4, 16)


def test_weights_that_nothing_multiplies_row_by_row_are_refused(monkeypatch):
    backend = NativeBackend("float32", 1, deterministic=True)
    monkeypatch.setattr(type(backend), "_row_by_row", lambda self, linear: False)
    weight = next(weight for weight in random_weights(SPEC).values() if weight.name.role == "qkv")
    with pytest.raises(UserError) as refused:
        backend.place(weight, SPEC, BlockInt8())
    (problem,) = refused.value.problems
    assert problem.what.startswith("layers.0.qkv is held as ")
    assert problem.what.endswith(", whose products depend on how many tokens there are")
    assert problem.where == "backend_torch.deterministic"


def composed(*flags):
    return attempt(first_pass(["--model", "random:tiny", "--device", "cpu", *flags], {}, None), PluginManager.discover())


@pytest.mark.parametrize(
    ("argv", "rule"),
    [
        (["--torch-kernels", "reference"], "deterministic-in-plain-torch"),
        (["--dtype", "float16"], "deterministic-in-float16"),
        (["--quantization", "fp8", "--fp8-emulate"], "deterministic-with-rounded-activations"),
        (["--tensor-parallel-size", "2"], "deterministic-among-ranks"),
    ],
)
def test_where_it_cannot_hold_it_is_refused_with_ways_out(argv, rule):
    tried = composed("--enable-deterministic-inference", *argv)
    assert [violation.rule.id for violation in tried.violations] == [rule]
    tried = composed("--deterministic")
    assert tried.plan is not None
    assert tried.plan.sections["backend_torch"]["deterministic"]
