"""Deterministic mode on CUDA: one request's logits, to the bit, alone and in steps that it shares."""

import numpy as np
import pytest

from core.compute.torch_backend.triton import segmented
from core.compute.torch_backend.triton.backend import TritonBackend
from core.compute.torch_backend.triton.tiling import Tiling
from core.errors import UserError
from core.interfaces.model import WeightName
from core.testing.inputs import random_weights, tiny_spec
from core.testing.neighbours import WAYS, Request, steps
from quant_fp8.pack import BlockFp8
from quant_wint8.pack import RowInt8

PROMPT, OTHERS = 24, 2
SPEC = tiny_spec(num_layers=1, vocab=40)


@pytest.fixture(autouse=True)
def short_segments(monkeypatch):
    """So that a short prompt has several of them."""
    monkeypatch.setattr(segmented, "SEGMENT", 16)
    monkeypatch.setattr(segmented, "KEYS", 16)


@pytest.mark.parametrize(("dtype", "quantizer"), [("bfloat16", None), ("float32", RowInt8())], ids=["bfloat16", "wint8"])
def test_logits_are_the_same_to_the_bit_whoever_shares_the_steps(dtype, quantizer):
    request = Request(TritonBackend("cpu", dtype, threads=1, deterministic=True), SPEC, PROMPT, quantizer)
    alone = request.logits(steps("alone", PROMPT, OTHERS))
    for way in WAYS:
        assert np.array_equal(request.logits(steps(way, PROMPT, OTHERS)), alone), way


def test_it_is_one_division_for_every_number_of_tokens():
    made = TritonBackend("cpu", "bfloat16", threads=1, deterministic=True)
    weights = random_weights(SPEC)
    qkv = made.place(weights[WeightName("qkv", 0)], SPEC, None)
    found = {made._tiles(qkv, tokens)[1] for tokens in (1, 2, 8, 33, 5000)}
    assert found == {Tiling(64, 32, 32, dot=True, warps=4, stages=3)}
    # What rounds activations by another kernel, for more tokens by a third, has no such way.
    with pytest.raises(UserError, match="is held as e4m3 in blocks of 128"):
        made.place(weights[WeightName("qkv", 0)], SPEC, BlockFp8())
