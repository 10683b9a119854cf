"""The safetensors reader: every dtype, and files that are damaged or mean harm."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from core.errors import UserError
from core.models.safetensors_file import SafetensorsFile
from core.models.safetensors_format import Safetensors
from tests.models import checkpoints as made

AGAIN = "\n  remedy: fetch the checkpoint again: the file is damaged or not a safetensors file"


def write(path, header, body=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + body)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float64, np.float64),
        (torch.float32, np.float32),
        (torch.float16, np.float16),
        (torch.bfloat16, ml_dtypes.bfloat16),
        (torch.float8_e4m3fn, ml_dtypes.float8_e4m3fn),
        (torch.float8_e5m2, ml_dtypes.float8_e5m2),
        (torch.int64, np.int64),
        (torch.int8, np.int8),
        (torch.uint8, np.uint8),
        (torch.bool, np.bool_),
    ],
)
def test_dtypes(tmp_path, dtype, expected):
    values = (torch.arange(12).reshape(3, 4) - 4).to(dtype)
    save_file({"x": values, "odd": torch.ones(3, dtype=torch.uint8)}, tmp_path / "m.safetensors")
    found = SafetensorsFile(tmp_path / "m.safetensors").tensor("x")
    assert found.dtype == expected
    np.testing.assert_array_equal(found.astype(np.float64), values.to(torch.float64).numpy())


def test_empty_and_unaligned_tensors(tmp_path):
    body = np.arange(2, dtype="<f4").tobytes()
    header = {"byte": entry("U8", (1,), (0, 1)), "x": entry(offsets=(1, 9)), "none": entry(shape=(0, 3), offsets=(9, 9))}
    file = SafetensorsFile(write(tmp_path / "m.safetensors", header, b"\7" + body))
    np.testing.assert_array_equal(file.tensor("x"), [0, 1])
    assert file.tensor("none").shape == (0, 3)


def test_tensors_are_mapped_and_survive_release(tmp_path):
    values = torch.randn(300, 400)
    save_file({"x": values}, tmp_path / "m.safetensors")
    file = SafetensorsFile(tmp_path / "m.safetensors")
    view = file.tensor("x")
    assert not view.flags.owndata
    assert not view.flags.writeable
    file.release("x")
    np.testing.assert_array_equal(view, values.numpy())
    file.close()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it has 0 bytes, too few for a header"),
        (b"abc", "it has 3 bytes, too few for a header"),
        (struct.pack("<Q", 1 << 40), "its header claims 1099511627776 bytes"),
        (struct.pack("<Q", 50) + b"{}", "its header claims 50 bytes, but the file has 10"),
        (struct.pack("<Q", 3) + b"{,}", "its header is not JSON"),
        (struct.pack("<Q", 2) + b"[]", "its header is not a table"),
        (struct.pack("<Q", 15) + b'{"a":{},"a":{}}', "its header has 'a' twice"),
    ],
)
def test_damaged_headers(tmp_path, content, why):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        SafetensorsFile(path)
    assert str(error.value) == f"cannot read {path}: {why}{AGAIN}"


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ({"x": entry(shape=(4,), offsets=(0, 16))}, "tensor 'x' ends at byte {end}, but the file has {size}: it is truncated"),
        ({"x": entry(shape=(3,))}, "tensor 'x' of shape [3] and dtype F32 cannot have 8 bytes"),
        ({"x": entry(shape=(-2,))}, "tensor 'x' has a shape or an offset that is no whole number"),
        ({"x": entry(offsets=(0, 8.0))}, "tensor 'x' has a shape or an offset that is no whole number"),
        ({"x": {"dtype": "F32"}}, "tensor 'x' is not described by dtype, shape and data_offsets"),
        ({"x": 5}, "tensor 'x' is not described by dtype, shape and data_offsets"),
        ({"x": entry(), "y": entry("F16", (2,), (4, 8))}, "tensors 'x' and 'y' overlap"),
        ({"x": entry(offsets=(8, 0))}, "tensor 'x' ends at byte {start}, but the file has {size}: it is truncated"),
    ],
)
def test_damaged_tensors(tmp_path, header, why):
    path = write(tmp_path / "m.safetensors", header, bytes(8))
    size = path.stat().st_size
    with pytest.raises(UserError) as error:
        SafetensorsFile(path)
    assert str(error.value) == f"cannot read {path}: {why.format(size=size, end=size + 8, start=size - 8)}{AGAIN}"


def test_unknown_dtype(tmp_path):
    path = write(tmp_path / "m.safetensors", {"x": entry("F4", (2,), (0, 1))}, bytes(8))
    with pytest.raises(UserError) as error:
        SafetensorsFile(path)
    assert str(error.value).splitlines()[0] == f"cannot read {path}: tensor 'x' has the unknown dtype 'F4'"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_escapes_as_anything_but_a_user_error(tmp_path, data):
    path = tmp_path / "m.safetensors"
    raw = json.dumps({"x": entry(), "y": entry("BF16", (2, 2), (8, 16))}).encode()
    whole = bytearray(struct.pack("<Q", len(raw)) + raw + bytes(16))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        file = SafetensorsFile(path)
    except UserError:
        return
    for name, span in file.spans.items():
        assert file.tensor(name).shape == span.shape


def test_missing_shards_are_named(tmp_path):
    made.save_pt(made.ernie_model(), tmp_path, max_shard_size="40KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    shards[0].unlink()
    shards[2].unlink()
    with pytest.raises(UserError) as error:
        Safetensors().open(tmp_path)
    assert str(error.value) == (
        f"{tmp_path} lacks 2 of {len(shards)} shards: {shards[0].name}, {shards[2].name}\n  remedy: fetch the checkpoint again"
    )


def edit_index(folder, change):
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    change(content)
    index.write_text(json.dumps(content))
    return index


def test_an_index_that_places_a_tensor_wrongly(tmp_path):
    made.save_pt(made.ernie_model(), tmp_path, max_shard_size="40KB")
    last = sorted(tmp_path.glob("*.safetensors"))[-1]
    edit_index(tmp_path, lambda content: content["weight_map"].update({"model.embed_tokens.weight": last.name}))
    with pytest.raises(UserError) as error:
        Safetensors().open(tmp_path)
    assert str(error.value).splitlines()[0] == f"{last} lacks tensor 'model.embed_tokens.weight', which the index places there"


def test_an_index_cannot_lead_out_of_its_folder(tmp_path):
    made.save_pt(made.ernie_model(), tmp_path, max_shard_size="40KB")
    index = edit_index(tmp_path, lambda content: content["weight_map"].update({"x": "../secret.safetensors"}))
    with pytest.raises(UserError) as error:
        Safetensors().open(tmp_path)
    assert str(error.value).splitlines()[0] == f"{index} places tensor 'x' outside its folder: '../secret.safetensors'"


def test_an_index_without_a_weight_map(tmp_path):
    made.save_pt(made.ernie_model(), tmp_path, max_shard_size="40KB")
    index = edit_index(tmp_path, lambda content: content.pop("weight_map"))
    with pytest.raises(UserError) as error:
        Safetensors().open(tmp_path)
    assert str(error.value).splitlines()[0] == f"{index} has no weight_map from tensor names to files"


def test_files_without_an_index_are_read_together_unless_they_disagree(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"b": torch.zeros(2)}, tmp_path / "two.safetensors")
    assert Safetensors().open(tmp_path).names() == {"a", "b"}
    save_file({"a": torch.zeros(2)}, tmp_path / "two.safetensors")
    with pytest.raises(UserError) as error:
        Safetensors().open(tmp_path)
    assert str(error.value).splitlines()[0] == f"tensor 'a' is in both one.safetensors and two.safetensors of {tmp_path}"


def test_config_errors(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"has no config\.json\n  remedy: give a folder as transformers saves it"):
        Safetensors().config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not JSON: expecting property name"):
        Safetensors().config(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"config\.json is not JSON: "):
        Safetensors().config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config\.json must hold a table"):
        Safetensors().config(tmp_path)
