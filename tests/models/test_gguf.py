"""GGUF files: metadata in config.json's terms, and what is refused."""

import sys

import gguf
import numpy as np
import pytest

from core.errors import UserError
from core.models import gguf_blocks
from core.models.gguf_file import GgufFile
from core.models.gguf_format import Gguf
from tests.models import checkpoints as made

AGAIN = "\n  remedy: fetch the file again: it is damaged, or not what it seems"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return made.save_gguf(made.llama_model(), tmp_path_factory.mktemp("gguf") / "m.gguf")


def test_config_is_in_config_json_terms(plain):
    config = Gguf().config(plain)
    assert {key: config[key] for key in made.TINY if key != "pad_token_id"} == {
        **{key: value for key, value in made.TINY.items() if key != "pad_token_id"},
        "eos_token_id": [2],
    }
    assert config["architectures"] == ["Ernie4_5ForCausalLM"]
    assert config["tie_word_embeddings"] is True
    assert config["gguf_architecture"] == "llama"
    assert config["rope_theta"] == 10000.0


def test_metadata_is_what_the_gguf_package_reads(plain):
    reader = gguf.GGUFReader(plain)
    found = GgufFile(plain).metadata
    theirs = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert found == theirs


def test_an_end_of_turn_ends_too(tmp_path):
    path = made.save_gguf(made.llama_model(), tmp_path / "m.gguf", metadata={"add_eot_token_id": (7,)})
    assert made.opened(path)[2].eos_token_ids == (2, 7)


def test_a_folder_with_one_file_is_that_file_and_two_are_refused(tmp_path, plain):
    (tmp_path / "a.gguf").write_bytes(plain.read_bytes())
    assert Gguf().recognizes(tmp_path)
    assert Gguf().config(tmp_path)["num_hidden_layers"] == 2
    (tmp_path / "b.gguf").write_bytes(plain.read_bytes())
    with pytest.raises(UserError) as error:
        Gguf().open(tmp_path)
    assert (
        str(error.value)
        == f"{tmp_path} has 2 GGUF files: a.gguf, b.gguf\n  remedy: name one of them: --model {tmp_path / 'a.gguf'}"
    )


def test_another_architecture_is_refused(tmp_path):
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError) as error:
        Gguf().config(path)
    assert str(error.value) == (
        f"{path} is a model of architecture 'mamba'; as GGUF, only llama and ernie4_5 are known\n"
        "  set by: general.architecture in the file's metadata\n"
        "  remedy: choose a file of one of these architectures"
    )


def test_partial_rotation_is_refused(tmp_path):
    path = made.save_gguf(made.llama_model(), tmp_path / "m.gguf", metadata={"add_uint32": ("llama.rope.dimension_count", 16)})
    with pytest.raises(UserError, match=r"has a rope\.dimension_count of 16, but this decoder only does that of its heads, 32"):
        Gguf().config(path)


def test_scaling_types(tmp_path):
    linear = {"add_rope_scaling_type": (gguf.RopeScalingType.LINEAR,), "add_rope_scaling_factor": (4.0,)}
    path = made.save_gguf(made.llama_model(), tmp_path / "linear.gguf", metadata=linear)
    assert made.opened(path)[2].rope_scaling == {"rope_type": "linear", "factor": 4.0}
    yarn = {"add_rope_scaling_type": (gguf.RopeScalingType.YARN,), "add_rope_scaling_factor": (4.0,)}
    path = made.save_gguf(made.llama_model(), tmp_path / "yarn.gguf", metadata=yarn)
    with pytest.raises(UserError, match="the model's rope type is 'yarn'"):
        made.opened(path)


def test_llama3_divisors_are_recognized_and_others_refused(tmp_path):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model = made.llama_model(rope_parameters=scaling)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](model.config, "cpu")
    unscaled = 1.0 / 500000.0 ** (np.arange(16) / 16)
    divisors = (unscaled / scaled.numpy()).astype(np.float32)
    assert divisors.max() > 31
    path = made.save_gguf(model, tmp_path / "m.gguf", extra={"rope_freqs.weight": divisors})
    assert made.opened(path)[2].rope_scaling == {key: value for key, value in scaling.items() if key != "rope_theta"}
    divisors[5] *= 1.5
    path = made.save_gguf(model, tmp_path / "other.gguf", extra={"rope_freqs.weight": divisors})
    with pytest.raises(UserError, match="scales its rotary frequencies in a way that is not Llama 3's"):
        made.opened(path)


def test_truncated_at_any_point(tmp_path, plain):
    whole, path = plain.read_bytes(), tmp_path / "m.gguf"
    for length in [0, 3, 4, 10, 24, 60, 500, 2000, len(whole) // 2, len(whole) - 64]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"^cannot read .*m\.gguf: ") as error:
            Gguf().open(path)
        assert str(error.value).endswith(AGAIN)


def test_a_file_that_is_no_gguf(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(UserError) as error:
        Gguf().config(path)
    assert str(error.value) == f"cannot read {path}: it is not a GGUF file{AGAIN}"


def test_a_format_nothing_unpacks_is_named(tmp_path, monkeypatch):
    path = made.save_gguf(made.ernie_model(), tmp_path / "m.gguf", gguf.GGMLQuantizationType.Q5_0)
    monkeypatch.setattr(gguf.quants, "_type_traits", {})
    checkpoint, _, _ = made.opened(path)
    with pytest.raises(UserError, match=r"tensor 'token_embd\.weight' is stored as Q5_0, which nothing here unpacks"):
        checkpoint.tensor("token_embd.weight")


@pytest.mark.parametrize("kind", gguf_blocks.FORMATS)
def test_values_are_the_gguf_packages_to_the_last_bit(kind):
    name, random = gguf.GGMLQuantizationType(kind), np.random.default_rng(kind)
    values, size = gguf.GGML_QUANT_SIZES[name]
    # Any bytes are blocks: also scales that are infinite or no number. What a NaN's own bits are is nobody's affair.
    raw = random.integers(0, 256, (gguf_blocks.AT_A_TIME * 2 + 5, size), dtype=np.uint8)
    raw[:32, :2] = np.frombuffer(np.array([0, -0.0, np.inf, 6e-8], np.float16).tobytes() * 8, np.uint8).reshape(32, 2)
    found = np.empty(len(raw) * values, np.float32)
    with np.errstate(all="ignore"):
        gguf_blocks.unpack(kind, raw.reshape(-1), found)
        right = gguf.dequantize(raw, name).reshape(-1)
    numbers = ~np.isnan(right)
    assert numbers.sum() > len(right) * 0.8
    np.testing.assert_array_equal(np.isnan(found), ~numbers)
    np.testing.assert_array_equal(found[numbers].view(np.uint32), right[numbers].view(np.uint32))


def test_what_is_unpacked_here_needs_no_package(tmp_path, monkeypatch):
    path = made.save_gguf(made.ernie_model(), tmp_path / "m.gguf", gguf.GGMLQuantizationType.Q8_0)
    right = made.opened(path)[0].tensor("token_embd.weight")
    monkeypatch.setitem(sys.modules, "gguf.constants", None)
    monkeypatch.setitem(sys.modules, "gguf.quants", None)
    np.testing.assert_array_equal(made.opened(path)[0].tensor("token_embd.weight"), right)
