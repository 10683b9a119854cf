"""What the contract (``tests/plugins_docs``) leaves open: bytes, the search, rows that do not divide, a model that runs."""

import numpy as np
import pytest

from core.compose import compose
from core.errors import UserError
from core.offers import Context
from core.testing.plugin import offers_of, plugin_module
from frontends.offline import LLM, SamplingParams
from quant_wint4.pack import GroupInt4, RowInt8
from quant_wint4.plugin import Wint4Settings, register_quantizers, stored_bits

MB = 10**6


def made(**section):
    (offer,) = register_quantizers()
    return offer.create(Context(Wint4Settings(**section), {}, {}))


def normal(rows, columns, seed=0):
    return (np.random.default_rng(seed).standard_normal((rows, columns)) * 0.02).astype(np.float32)


def heavy(rows, columns, seed=0):
    return (np.random.default_rng(seed).standard_t(3, (rows, columns)) * 0.02).astype(np.float32)


def test_the_bytes_of_ernie_are_those_of_four_bits():
    """127 MB of layers and scales, and the embedding of 212 MB; the copy that the head gets here is told apart."""
    plan = compose(["--model", "random:ernie-4.5-0.3b", "--quantization", "wint4", "--no-quant-wint4-head"])
    assert plan.facts["memory.weights_bytes"] == pytest.approx(340 * MB, rel=0.02)
    with_head = compose(["--model", "random:ernie-4.5-0.3b", "--quantization", "wint4"])
    assert with_head.facts["memory.weights_bytes"] - plan.facts["memory.weights_bytes"] == pytest.approx(106 * MB, rel=0.01)


@pytest.mark.parametrize("group_size", [0, 32, 64, 128])
@pytest.mark.parametrize("columns", [576, 1024, 3072])
def test_what_is_stored_is_said_before_anything_is_packed(group_size, columns):
    section = Wint4Settings(group_size=group_size, pad=True)
    quantizer = made(group_size=group_size, pad=True)
    packed = quantizer.pack(normal(64, columns))
    said = stored_bits(section, "down", columns)
    assert said == quantizer.bits_per_weight(columns) == packed.nbytes * 8 / (64 * columns)
    assert stored_bits(section, "head", columns) == RowInt8().bits_per_weight(columns)
    assert stored_bits(Wint4Settings(head=False), "head", columns) is None
    (offer,) = offers_of(plugin_module("quant_wint4"))
    assert offer.stored_bits is stored_bits


def test_the_head_has_eight_bits_or_is_left_alone():
    quantizer = made()
    assert quantizer.roles == {"qkv", "o", "gate_up", "down", "head"}
    assert quantizer.of_role("o") is quantizer
    assert quantizer.of_role("head").layout == "int8_row"
    assert made(head=False).roles == {"qkv", "o", "gate_up", "down"}


@pytest.mark.parametrize("value", [-1, "-1", 0, "0"])
def test_a_whole_row_by_either_name(value):
    assert Wint4Settings(group_size=value).group_size == 0


def test_the_longer_side_takes_the_eighth_step():
    """A group that was made of sixteen steps, its longest weight eight of them from zero, comes back as it was."""
    codes = np.tile(np.arange(-7, 9, dtype=np.float32), (2, 4))
    codes[1] *= -1
    weight = codes * np.float32(0.25)
    quantizer = GroupInt4(32)
    assert np.array_equal(quantizer.unpack(quantizer.pack(weight)), weight)


@pytest.mark.parametrize("group_size", [0, 32, 64, 128])
@pytest.mark.parametrize("weights", [normal, heavy])
def test_the_search_is_closer_in_every_group(group_size, weights):
    weight = weights(64, 1024)
    width = group_size or 1024
    plain, searched = (
        (np.abs(weight) * (quantizer.unpack(quantizer.pack(weight)) - weight) ** 2).reshape(-1, width).sum(1)
        for quantizer in (GroupInt4(group_size), GroupInt4(group_size, search=True))
    )
    assert (searched <= plain * (1 + 1e-5)).all()
    assert searched.sum() < 0.97 * plain.sum()


@pytest.mark.parametrize(
    ("group_size", "gaussian", "heavy_tails"), [(32, 0.095, 0.14), (64, 0.105, 0.175), (128, 0.115, 0.22), (0, 0.16, 0.55)]
)
def test_outputs_of_real_shapes(group_size, gaussian, heavy_tails):
    """The relative error of y = x W^T that packing makes: less in smaller groups."""
    for weights, worst in ((normal, gaussian), (heavy, heavy_tails)):
        for rows, columns in ((2560, 1024), (1024, 3072)):
            weight, quantizer = weights(rows, columns), GroupInt4(group_size)
            x = np.random.default_rng(1).standard_normal((8, columns)).astype(np.float32)
            right = x @ weight.T
            error = x @ quantizer.unpack(quantizer.pack(weight)).T - right
            assert np.linalg.norm(error) / np.linalg.norm(right) < worst


def test_rows_that_groups_do_not_divide():
    weight = normal(16, 576)
    with pytest.raises(UserError) as refused:
        GroupInt4(128).pack(weight)
    (problem,) = refused.value.problems
    assert problem.what == "groups of 128 weights do not divide rows of 576"
    filled = GroupInt4(128, pad=True)
    packed = filled.pack(weight)
    assert packed.shape == (16, 576)
    assert packed.arrays["codes"].shape == (16, 320)
    values = filled.unpack(packed)
    assert np.array_equal(values[:, :512], GroupInt4(128).unpack(GroupInt4(128).pack(weight[:, :512])))
    assert np.array_equal(values[:, 512:], GroupInt4(64).unpack(GroupInt4(64).pack(weight[:, 512:])))


def test_the_composition_refuses_them_and_says_all_of_it():
    with pytest.raises(UserError) as refused:
        compose(["--model", "random:smollm2-135m", "--quantization", "wint4"])
    assert [problem.what for problem in refused.value.problems] == [
        "groups of 128 weights do not divide the hidden width 576",
        "groups of 128 weights do not divide the attention width 576",
    ]
    assert refused.value.problems[0].remedies == (
        "--quant-wint4-pad: fill each row up with zeros",
        "--quant-wint4-group-size 0: one scale a row",
    )
    compose(["--model", "random:smollm2-135m", "--quantization", "wint4", "--quant-wint4-group-size", "-1"])


@pytest.mark.parametrize("section", [{"group_size": 32}, {"group_size": 128, "pad": True}, {"group_size": 0, "search": True}])
def test_a_model_generates(section):
    with LLM("random:tiny", quantization="wint4", quant_wint4=section, max_model_len=64, threads=1) as llm:
        greedy = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
        prompts = [[5, 6, 7], [9] * 20, [3, 1]]
        together = [out.outputs[0].token_ids for out in llm.generate(prompts, greedy, use_tqdm=False)]
        alone = [llm.generate([prompt], greedy, use_tqdm=False)[0].outputs[0].token_ids for prompt in prompts]
    assert together == alone
    assert all(len(tokens) == 8 for tokens in together)
