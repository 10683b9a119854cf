"""The layout of checkpoints that are saved packed: what is written is read again, and what is damaged or foreign is refused."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from core.errors import UserError
from core.interfaces.model import WeightName, weight_names
from core.interfaces.quantizer import Packed, packed_chunks
from core.models import safetensors_writer
from core.models.packed import Packing, layouts, outline, packed_weights, read_packing, tensors
from core.models.safetensors_format import Safetensors
from core.models.safetensors_writer import Shards
from core.testing.fakes import RowInt8
from core.testing.inputs import random_weights, tiny_spec

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
PACKING = Packing("fake_int8", "quant_fake", {"head": True}, layouts(RowInt8()))


class BlockInt8(RowInt8):
    """Three rows share a scale."""

    rows_together = 3

    def pack(self, weight):
        rows = [super(BlockInt8, self).pack(weight[first : first + 3].reshape(1, -1)) for first in range(0, len(weight), 3)]
        codes = np.concatenate([row.arrays["codes"].ravel() for row in rows]).reshape(weight.shape)
        scale = np.concatenate([row.arrays["scale"] for row in rows])
        return Packed(weight.shape, {"codes": codes, "scale": scale}, {"rows": 3})

    def unpack(self, packed):
        return packed.arrays["codes"] * np.repeat(packed.arrays["scale"], 3)[: packed.shape[0], None]


def saved(folder, spec, quantizer, dtype=None, most=1 << 30):
    folder.mkdir()
    shards = Shards(folder, most)
    for name, tensor in tensors(random_weights(spec).values(), quantizer, dtype):
        shards.add(name, tensor)
    shards.finish()
    (folder / "config.json").write_text("{}")
    return folder


def loaded(folder, spec, quantizer, packing=None):
    checkpoint = Safetensors().open(folder)
    found = {}
    for weight in packed_weights(checkpoint, spec, packing or Packing("x", "y", {}, layouts(quantizer)), quantizer):
        parts = tuple(np.array(part) for part in weight.parts)
        packed = weight.packed and {key: np.array(array) for key, array in weight.packed.arrays.items()}
        found[weight.name] = weight, parts, packed
    checkpoint.close()
    return found


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("quantizer", [RowInt8(), RowInt8(frozenset({"o", "head"})), BlockInt8(frozenset({"qkv", "down"}))])
@pytest.mark.parametrize("most", [1 << 30, 10_000, 1])
def test_what_is_written_is_read_again(tied, quantizer, most, tmp_path):
    spec = tiny_spec(tied_head=tied)
    found = loaded(saved(tmp_path / "packed", spec, quantizer, most=most), spec, quantizer)
    assert list(found) == list(weight_names(spec))
    for name, weight in random_weights(spec).items():
        ours, parts, packed = found[name]
        assert ours.tied == weight.tied
        if name.role in quantizer.roles:
            expected = quantizer.stack(list(packed_chunks(weight, quantizer)))
            assert (ours.packed.shape, dict(ours.packed.constants)) == (expected.shape, dict(expected.constants))
            assert packed.keys() == expected.arrays.keys()
            assert all(np.array_equal(packed[key], array) for key, array in expected.arrays.items())
            assert parts == ()
        else:
            assert packed is None
            assert [part.shape for part in parts] == [part.shape for part in weight.parts]
            assert all(np.array_equal(a, b) for a, b in zip(parts, weight.parts, strict=True))


def test_the_files_are_what_others_read(tmp_path):
    spec = tiny_spec()
    folder = saved(tmp_path / "packed", spec, RowInt8(), BFLOAT16, most=12_000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert files == [f"model-{at:05}-of-{len(files):05}.safetensors" for at in range(1, len(files) + 1)]
    assert len(files) > 2
    sizes = 0
    for name, file in index["weight_map"].items():
        with safe_open(folder / file, "numpy") as opened:
            array = opened.get_tensor(name) if not name.endswith(".weight") else None
            kind = opened.get_slice(name).get_dtype()
            sizes += np.prod(opened.get_slice(name).get_shape()) * {"I8": 1, "F32": 4, "BF16": 2}[kind]
        if name == "layers.1.o.codes":
            weight = random_weights(spec)[WeightName("o", 1)]
            assert np.array_equal(array, RowInt8().pack(weight.parts[0]).arrays["codes"])
        assert kind == {"codes": "I8", "scale": "F32", "weight": "F32" if "norm" in name else "BF16"}[name.split(".")[-1]]
    assert index["metadata"]["total_size"] == sizes
    assert "head.weight" not in index["weight_map"]


def test_a_header_that_is_full_begins_another_file(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_writer, "ROOM", 1024)
    spec = tiny_spec()
    folder = saved(tmp_path / "packed", spec, RowInt8())
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert list(loaded(folder, spec, RowInt8())) == list(weight_names(spec))


@pytest.mark.parametrize("quantizer", [RowInt8(), BlockInt8()])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 96, 97, 98])
def test_the_outline_is_that_of_any_such_matrix(quantizer, rows):
    packed = quantizer.pack(np.ones((rows, 32), np.float32))
    expected = {key: (array.shape, array.dtype) for key, array in packed.arrays.items()}
    seen = outline(quantizer, (rows, 32))
    assert {key: (array.shape, array.dtype) for key, array in seen.arrays.items()} == expected
    assert (seen.shape, dict(seen.constants)) == ((rows, 32), dict(packed.constants))


def refusal(call, *arguments):
    with pytest.raises(UserError) as refused:
        call(*arguments)
    [problem] = refused.value.problems
    return problem


def rewritten(folder, name, change):
    """The folder's only file again, with one tensor changed, or without it where the change gives None."""
    path = folder / "model.safetensors"
    with safe_open(path, "numpy") as opened:
        held = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - it is no mapping
    path.unlink()
    shards = Shards(folder, 1 << 30)
    for key, array in held.items():
        array = change(array) if key == name else array
        if array is not None:
            shards.add(key, array)
    shards.finish()


@pytest.mark.parametrize(
    ("name", "change", "what"),
    [
        (
            "layers.0.qkv.codes",
            lambda array: array[:-1],
            "tensor 'layers.0.qkv.codes' is [127, 32] of int8, but the model's config asks for [128, 32] of int8",
        ),
        (
            "layers.1.down.scale",
            lambda array: array.astype(np.float16),
            "tensor 'layers.1.down.scale' is [32] of float16, but the model's config asks for [32] of float32",
        ),
        (
            "embed.weight",
            lambda array: array.T.copy(),
            "tensor 'embed.weight' is [32, 96] of float32, but the model's config asks for [96, 32]",
        ),
        ("layers.0.o.scale", lambda array: None, "the checkpoint has no tensor 'layers.0.o.scale' among its 21"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(name, change, what, tmp_path):
    spec = tiny_spec()
    folder = saved(tmp_path / "packed", spec, RowInt8())
    rewritten(folder, name, change)
    assert refusal(loaded, folder, spec, RowInt8()).what == what


def test_a_quantizer_that_reads_something_else_is_not_asked_to(tmp_path):
    spec = tiny_spec()
    folder = saved(tmp_path / "packed", spec, RowInt8())

    class Other(RowInt8):
        layout = "fake_int8_column"

    problem = refusal(loaded, folder, spec, Other(frozenset({"qkv", "o"})), PACKING)
    assert problem.what == (
        "the checkpoint is packed as qkv fake_int8_row, o fake_int8_row, gate_up fake_int8_row, down fake_int8_row; "
        "the installed plugin quant_fake reads qkv fake_int8_column, o fake_int8_column"
    )
    assert problem.remedies == (
        "install the version of quant_fake that packed it",
        "or save it again: dovetail quantize",
    )


def test_what_is_said_is_read_again():
    config = json.loads(json.dumps({"quantization_config": PACKING.as_config()}))
    assert read_packing(config, "mine") == PACKING
    assert read_packing({}, "mine") is None
    assert read_packing({"quantization_config": None}, "mine") is None
    assert read_packing({"quantization_config": {}}, "mine") is None


PACK_HERE = "choose the checkpoint that was packed, in bfloat16 or float16, and pack it here: --quantization wint4|wint8"


@pytest.mark.parametrize(
    ("found", "what", "remedies"),
    [
        (
            {"quant_method": "gptq", "bits": 4, "group_size": 128},
            "the weights of mine are packed by gptq (4 bits)",
            (PACK_HERE,),
        ),
        ({"quant_method": "awq", "bits": 4}, "the weights of mine are packed by awq (4 bits)", (PACK_HERE,)),
        (
            {"quant_method": "compressed-tensors", "format": "pack-quantized"},
            "the weights of mine are packed by compressed-tensors (pack-quantized)",
            (PACK_HERE,),
        ),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            "the weights of mine are packed by bitsandbytes",
            (PACK_HERE,),
        ),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "the weights of mine are packed by fp8", (PACK_HERE,)),
        (
            {"quantization": "wint8", "is_quantized": True},
            "the weights of mine are packed by FastDeploy as wint8",
            (PACK_HERE,),
        ),
        (
            {"quantization": "mix_quant", "dense_quant_type": "block_wise_fp8", "is_quantized": True},
            "the weights of mine are packed by FastDeploy as block_wise_fp8",
            (PACK_HERE,),
        ),
        ("int8", "the weights of mine are packed by a method without a name", (PACK_HERE,)),
    ],
)
def test_what_others_packed_is_refused_by_name(found, what, remedies):
    problem = refusal(read_packing, {"quantization_config": found}, "mine", ["wint4", "wint8"])
    assert problem.what == f"{what}, which cannot be read here"
    assert problem.where == "quantization_config in the model's config"
    assert problem.remedies == remedies
    assert refusal(read_packing, {"compression_config": found}, "mine", ["wint4", "wint8"]).what == problem.what


def test_what_fastdeploy_is_to_pack_is_refused_with_a_way_out():
    found = {"quantization": "mix_quant", "dense_quant_type": "wint8", "moe_quant_type": "wint4"}
    problem = refusal(read_packing, {"quantization_config": found}, "mine", ["wint4", "wint8"])
    assert problem.what == "config.json of mine asks FastDeploy to pack the weights as wint8 while it loads them"
    assert problem.remedies == (
        "take quantization_config out of config.json, and have them packed here: --quantization wint4|wint8",
    )


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"version": 2}, "mine is packed in version 2 of Dovetail's layout, and this one reads version 1"),
        ({"quantizer": None}, "the quantization_config of mine does not say which quantizer packed what, and how"),
        ({"layouts": {"qkv": 1}}, "the quantization_config of mine does not say which quantizer packed what, and how"),
        ({"layouts": {"embed": "x"}}, "the quantization_config of mine does not say which quantizer packed what, and how"),
        ({"layouts": {}}, "the quantization_config of mine does not say which quantizer packed what, and how"),
        ({"settings": None}, "the quantization_config of mine does not say which quantizer packed what, and how"),
    ],
)
def test_what_is_damaged_or_newer_is_refused(change, what):
    assert refusal(read_packing, {"quantization_config": PACKING.as_config() | change}, "mine").what == what
