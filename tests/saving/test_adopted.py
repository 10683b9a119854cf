"""Checkpoints that another program packed in a format that is also ours: exactly its numbers, or a refusal."""

import json

import ml_dtypes
import numpy as np
import pytest

from core.bench.quality import Reader
from core.compose import compose
from core.compose.build import create_quantizer, fetched, stored_weights
from core.compose.report import explain_text
from core.errors import UserError
from core.interfaces.model import WeightName
from core.models.random_format import SHAPES, RandomCheckpoint
from core.models.safetensors_writer import Shards
from core.plugin_manager import PluginManager

TINY = SHAPES["llama-tiny"]
TOKENS = np.array([1, 5, 300, 7, 21], np.int32)
BFLOAT16 = ml_dtypes.bfloat16


def config(bits, strategy="group", group_size=32, form="pack-quantized", **weights):
    described = {
        "num_bits": bits,
        "type": "int",
        "symmetric": True,
        "strategy": strategy,
        "group_size": group_size,
        "dynamic": False,
    }
    group = {"targets": ["Linear"], "weights": described | weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
    }


def words(codes, bits):
    """As compressed-tensors packs: codes made positive, the first in the lowest bits of an int32."""
    unsigned = codes.astype(np.int64) + (1 << bits - 1)
    many = 32 // bits
    packed = sum(unsigned[:, at::many] << bits * at for at in range(many))
    return packed.astype(np.uint32).view(np.int32)


def checkpoint(folder, quantization_config, change=lambda name, tensors: None):
    """A random model whose layers are packed so, and what their weights are: name -> float32 values."""
    group = quantization_config["config_groups"]["group_0"]["weights"]
    bits, form = group["num_bits"], quantization_config["format"]
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY | {"quantization_config": quantization_config}))
    source, random = RandomCheckpoint(TINY, 0), np.random.default_rng(0)
    shards, values = Shards(folder, 1 << 30), {}
    for name in sorted(source.names()):
        tensor = source.tensor(name)
        if not name.endswith("proj.weight"):
            shards.add(name, tensor)
            continue
        rows, columns = tensor.shape
        groups = columns // group["group_size"] if group["strategy"] == "group" else 1
        codes = random.integers(-(1 << bits - 1), 1 << bits - 1, (rows, columns))
        scale = (random.random((rows, groups)) * 0.01 + 0.001).astype(BFLOAT16)
        values[name] = codes.astype(np.float32) * np.repeat(scale.astype(np.float32), columns // groups, axis=1)
        tensors = {"weight_scale": scale}
        if form == "pack-quantized":
            tensors |= {"weight_packed": words(codes, bits), "weight_shape": np.array([rows, columns], np.int64)}
        else:
            tensors["weight"] = codes.astype(np.int8)
        change(name, tensors)
        for key, array in tensors.items():
            shards.add(f"{name.removesuffix('weight')}{key}", array)
    shards.finish()
    return values


def unpacked(folder, values):
    """The same model, of what its packed weights stand for."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY))
    source, shards = RandomCheckpoint(TINY, 0), Shards(folder, 1 << 30)
    for name in sorted(source.names()):
        shards.add(name, values.get(name, source.tensor(name)))
    shards.finish()
    return folder


def planned(folder, *flags):
    argv = ["--model", str(folder), "--threads", "1", "--max-model-len", "64", "--dtype", "float32", *flags]
    return fetched(compose(argv, env={}))


@pytest.mark.parametrize(
    ("quantization_config", "quantizer", "settings"),
    [
        (config(4), "wint4", {"group_size": 32}),
        (config(4, strategy="channel", group_size=None), "wint4", {"group_size": 0}),
        (config(8, strategy="channel", group_size=None), "wint8", {}),
        (config(8, strategy="channel", group_size=None, form="int-quantized"), "wint8", {}),
    ],
)
def test_the_numbers_are_those_that_were_packed(quantization_config, quantizer, settings, tmp_path):
    values = checkpoint(tmp_path / "theirs", quantization_config)
    plan = planned(tmp_path / "theirs")
    assert plan.warnings == ()
    assert plan.chosen("quantizer").name == quantizer
    assert plan.chosen("quantizer").origin == f"config.json of {tmp_path / 'theirs'}"
    assert plan.sections[f"quant_{quantizer}"].items() >= (settings | {"head": False}).items()
    assert f"head         False  config.json of {tmp_path / 'theirs'}" in explain_text(plan)
    manager = PluginManager.load_only(plan.plugins)
    unpacker = create_quantizer(plan, manager)
    expected = {
        str(WeightName(role, layer)): np.concatenate([values[f"model.layers.{layer}.{part}.weight"] for part in parts])
        for layer in range(TINY["num_hidden_layers"])
        for role, parts in {
            "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "o": ("self_attn.o_proj",),
            "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
            "down": ("mlp.down_proj",),
        }.items()
    }
    seen = set()
    with stored_weights(plan, manager) as weights:
        for weight in weights:
            if weight.packed is None:
                assert weight.name.role in ("embed", "norm", "head")
                assert all(part.dtype == BFLOAT16 for part in weight.parts)
            else:
                assert np.array_equal(unpacker.unpack(weight.packed), expected[str(weight.name)])
                seen.add(str(weight.name))
    assert seen == expected.keys()
    exact = planned(tmp_path / "theirs", f"--quant-{quantizer}-activations", "int16")
    logits, right = (
        Reader(each, len(TOKENS)).read(TOKENS, 0) for each in (exact, planned(unpacked(tmp_path / "plain", values)))
    )
    assert np.abs(logits - right).max() < 0.01 * np.abs(right).max()


def refused(folder, *flags):
    with pytest.raises(UserError) as error:
        Reader(planned(folder, *flags), len(TOKENS))
    [problem] = error.value.problems
    return problem.what


@pytest.mark.parametrize(
    "quantization_config",
    [
        config(4, symmetric=False),
        config(4, group_size=48),
        config(4, type="float"),
        config(8),
        config(8, strategy="tensor"),
        config(4) | {"format": "marlin-24"},
        config(4) | {"config_groups": {"group_0": config(4)["config_groups"]["group_0"], "group_1": {}}},
        config(4) | {"config_groups": []},
        {"quant_method": "compressed-tensors", "format": "float-quantized"},
    ],
)
def test_formats_that_are_not_ours_are_refused(quantization_config, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text(json.dumps(TINY | {"quantization_config": quantization_config}))
    assert refused(tmp_path) == (
        f"the weights of {tmp_path} are packed by compressed-tensors ({quantization_config['format']}), "
        "which cannot be read here"
    )


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            {"weight_g_idx": np.zeros(64, np.int32)},
            "the packed tensors of 'model.layers.0.self_attn.q_proj' are not as wint4 has them: "
            "weight_g_idx would be left over",
        ),
        (
            {"weight_scale": np.ones((64, 2), np.float16)},
            "the packed tensors of 'model.layers.0.self_attn.q_proj' are not as wint4 has them: "
            "scale is [64, 2] of float16, not [64, 2] of bfloat16",
        ),
        (
            {"weight_packed": np.zeros((64, 7), np.int32)},
            "the packed tensors of 'model.layers.0.self_attn.q_proj' are not as wint4 has them: "
            "codes is [64, 28] of uint8, not [64, 32] of uint8",
        ),
        (
            {"weight_shape": np.array([64, 63])},
            "the packed tensors of 'model.layers.0.self_attn.q_proj' are not as wint4 has them: it is not of shape [64, 64]",
        ),
        (
            {"weight_scale": None},
            "the checkpoint has no tensor 'model.layers.0.self_attn.q_proj.weight_scale' among its 48",
        ),
    ],
)
def test_tensors_that_are_not_as_the_config_says_are_refused(change, what, tmp_path):
    def changed(name, tensors):
        if name == "model.layers.0.self_attn.q_proj.weight":
            tensors |= change
            for key in [key for key, array in tensors.items() if array is None]:
                del tensors[key]

    checkpoint(tmp_path / "theirs", config(4), changed)
    assert refused(tmp_path / "theirs") == what


def test_packed_tensors_are_never_taken_for_weights(tmp_path):
    """Even if config.json no longer says that they are packed."""
    checkpoint(tmp_path / "theirs", config(8, strategy="channel", group_size=None, form="int-quantized"))
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(TINY))
    assert refused(tmp_path / "theirs") == (
        "tensor 'model.layers.0.self_attn.q_proj.weight' is of int8: it is packed, and the model's config does not say how"
    )
