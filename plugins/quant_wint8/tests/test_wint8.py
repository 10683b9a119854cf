"""What the contract (``tests/plugins_docs``) leaves open: bytes on the model this project is about, and a model that runs."""

import numpy as np
import pytest

from core.compose import compose
from core.models.random_format import SHAPES
from core.testing.plugin import offers_of, plugin_module
from frontends.offline import LLM, SamplingParams
from quant_wint8.pack import RowInt8
from quant_wint8.plugin import Wint8Settings, stored_bits

MB = 10**6


def test_the_bytes_of_ernie_are_those_of_fastdeploy():
    """255 MB of layers and the embedding of 212 MB; the copy that the head gets here is told apart."""
    shape = SHAPES["ernie-4.5-0.3b"]
    assert shape["num_hidden_layers"] == 18
    plan = compose(["--model", "random:ernie-4.5-0.3b", "--quantization", "wint8", "--no-quant-wint8-head"])
    assert plan.facts["memory.weights_bytes"] == pytest.approx(467 * MB, rel=0.01)
    with_head = compose(["--model", "random:ernie-4.5-0.3b", "--quantization", "wint8"])
    assert with_head.facts["memory.weights_bytes"] == pytest.approx(573 * MB, rel=0.01)


@pytest.mark.parametrize(("head", "bits"), [(True, 8.03125), (False, None)])
def test_what_is_stored_is_said_before_anything_is_packed(head, bits):
    section = Wint8Settings(head=head)
    assert stored_bits(section, "head", 1024) == bits
    assert stored_bits(section, "qkv", 1024) == RowInt8().bits_per_weight(1024) == 8.03125
    (offer,) = offers_of(plugin_module("quant_wint8"))
    assert offer.stored_bits is stored_bits


def test_what_is_packed():
    assert RowInt8().roles == {"qkv", "o", "gate_up", "down", "head"}
    assert RowInt8(head=False).roles == {"qkv", "o", "gate_up", "down"}


@pytest.mark.parametrize(("spread", "worst"), [("gaussian", 0.01), ("heavy tails", 0.05)])
def test_outputs_of_real_shapes(spread, worst):
    """The relative error of y = x W^T that packing makes."""
    random = np.random.default_rng(0)
    for rows, columns in ((2560, 1024), (1024, 3072)):
        weight = random.standard_normal((rows, columns)) if spread == "gaussian" else random.standard_t(3, (rows, columns))
        weight = (0.02 * weight).astype(np.float32)
        quantizer = RowInt8()
        x = random.standard_normal((8, columns)).astype(np.float32)
        right = x @ weight.T
        error = x @ quantizer.unpack(quantizer.pack(weight)).T - right
        assert np.linalg.norm(error) / np.linalg.norm(right) < worst


@pytest.mark.parametrize("activations", ["int8", "int16"])
def test_a_model_generates(activations):
    with LLM("random:tiny", quantization="wint8", quant_wint8={"activations": activations}, max_model_len=64, threads=1) as llm:
        greedy = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
        prompts = [[5, 6, 7], [9] * 20, [3, 1]]
        together = [out.outputs[0].token_ids for out in llm.generate(prompts, greedy, use_tqdm=False)]
        alone = [llm.generate([prompt], greedy, use_tqdm=False)[0].outputs[0].token_ids for prompt in prompts]
    assert together == alone
    assert all(len(tokens) == 8 for tokens in together)
