"""The same weights, whatever layout they were written in: equal bit for bit, in canonical form."""

import gguf
import numpy as np
import pytest
import torch

from core.errors import UserError
from core.interfaces.model import weight_names
from core.models.loading import weights
from tests.models import checkpoints as made


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        assert left[name].shape == right[name].shape, name
        assert left[name].tobytes() == right[name].tobytes(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [True, False])
def test_paddle_equals_pt(tmp_path, dtype, tied):
    model = made.ernie_model(dtype=dtype, tie_word_embeddings=tied)
    pt = made.canonical(made.save_pt(model, tmp_path / "pt"))
    assert_same(pt, made.canonical(made.save_paddle(model, tmp_path / "paddle")))
    assert (pt["head"].tobytes() == pt["embed"].tobytes()) is tied


def test_canonical_weights_are_the_models_own(tmp_path):
    model = made.ernie_model()
    found = made.canonical(made.save_pt(model, tmp_path))
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    inner = "model.layers.1."
    q, k, v = (state[f"{inner}self_attn.{part}_proj.weight"] for part in "qkv")
    np.testing.assert_array_equal(found["layers.1.qkv"], np.concatenate([q, k, v]))
    gate, up = state[f"{inner}mlp.gate_proj.weight"], state[f"{inner}mlp.up_proj.weight"]
    np.testing.assert_array_equal(found["layers.1.gate_up"], np.concatenate([gate, up]))
    np.testing.assert_array_equal(found["layers.1.o"], state[f"{inner}self_attn.o_proj.weight"])
    np.testing.assert_array_equal(found["layers.1.down"], state[f"{inner}mlp.down_proj.weight"])
    np.testing.assert_array_equal(found["layers.1.input_norm"], state[f"{inner}input_layernorm.weight"])
    np.testing.assert_array_equal(found["layers.1.post_norm"], state[f"{inner}post_attention_layernorm.weight"])
    np.testing.assert_array_equal(found["final_norm"], state["model.norm.weight"])
    np.testing.assert_array_equal(found["embed"], state["model.embed_tokens.weight"])


def test_shards_equal_a_single_file(tmp_path):
    model = made.ernie_model()
    made.save_pt(model, tmp_path / "sharded", max_shard_size="40KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    assert_same(made.canonical(made.save_pt(model, tmp_path / "single")), made.canonical(tmp_path / "sharded"))


@pytest.mark.parametrize("tied", [True, False])
def test_gguf_equals_pt(tmp_path, tied):
    model = made.ernie_model(tie_word_embeddings=tied)
    assert_same(
        made.canonical(made.save_pt(model, tmp_path / "pt")), made.canonical(made.save_gguf(model, tmp_path / "m.gguf"))
    )


def test_gguf_llama_is_the_hf_llama_with_interleaved_rows(tmp_path):
    model = made.llama_model()
    hf, packed = (
        made.canonical(made.save_pt(model, tmp_path / "hf")),
        made.canonical(made.save_gguf(model, tmp_path / "m.gguf")),
    )
    _, _, spec = made.opened(tmp_path / "hf")
    assert spec.rope_style == "half"
    assert made.opened(tmp_path / "m.gguf")[2].rope_style == "interleaved"
    for layer in range(spec.num_layers):
        rows = hf[f"layers.{layer}.qkv"]
        q, k, v = np.split(rows, [spec.q_width, spec.q_width + spec.kv_width])
        hf[f"layers.{layer}.qkv"] = np.concatenate([made.interleaved(q, 4), made.interleaved(k, 2), v])
        assert hf[f"layers.{layer}.qkv"].tobytes() != rows.tobytes()
    assert_same(hf, packed)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_gguf_formats_are_what_the_gguf_package_dequantizes(tmp_path, kind):
    kind = gguf.GGMLQuantizationType[kind]
    path = made.save_gguf(made.ernie_model(), tmp_path / "m.gguf", kind)
    checkpoint, _, _ = made.opened(path)
    for stored in gguf.GGUFReader(path).tensors:
        expected = gguf.quants.dequantize(stored.data, stored.tensor_type)
        found = checkpoint.tensor(stored.name)
        assert found.shape == expected.shape
        np.testing.assert_array_equal(found.astype(np.float32), expected)


def test_a_model_saved_without_its_head_has_no_prefix(tmp_path):
    model = made.ernie_model()
    made.save_pt(model, tmp_path / "whole")
    model.model.save_pretrained(tmp_path / "bare")
    (tmp_path / "bare" / "config.json").write_text((tmp_path / "whole" / "config.json").read_text())
    assert_same(made.canonical(tmp_path / "whole"), made.canonical(tmp_path / "bare"))


def test_paddle_parts_are_views_whose_transpose_is_the_stored_order(tmp_path):
    checkpoint, family, spec = made.opened(made.save_paddle(made.ernie_model(), tmp_path))
    for weight in weights(checkpoint, family, spec):
        if weight.name.role in ("o", "down"):
            assert weight.parts[0].T.flags.c_contiguous
        assert not any(part.flags.owndata for part in weight.parts)


def test_weights_come_in_loading_order_with_the_tied_head_marked(tmp_path):
    for tied in (True, False):
        checkpoint, family, spec = made.opened(made.save_pt(made.ernie_model(tie_word_embeddings=tied), tmp_path / str(tied)))
        found = [(weight.name, weight.tied) for weight in weights(checkpoint, family, spec)]
        assert [name for name, _ in found] == list(weight_names(spec))
        assert [str(name) for name, marked in found if marked] == (["head"] if tied else [])


def test_parts_stack_to_the_canonical_shape(tmp_path):
    checkpoint, family, spec = made.opened(made.save_paddle(made.ernie_model(), tmp_path))
    sizes = 0
    for weight in weights(checkpoint, family, spec):
        whole = np.concatenate(weight.parts)
        assert whole.shape == spec.shape(weight.name.role)
        assert len(weight.parts) == {"qkv": 3, "gate_up": 2}.get(weight.name.role, 1)
        sizes += 0 if weight.tied else whole.size
    assert sizes == spec.parameters


@pytest.mark.parametrize(
    ("save", "gone"),
    [
        (made.save_pt, "model.layers.1.mlp.up_proj.weight"),
        (made.save_paddle, "ernie.layers.0.self_attn.qkv_proj.weight"),
        (made.save_paddle, "ernie.embed_tokens.weight"),
    ],
)
def test_a_missing_tensor_is_named(tmp_path, save, gone):
    from safetensors.torch import load_file, save_file

    file = save(made.ernie_model(), tmp_path) / "model.safetensors"
    tensors = load_file(file)
    del tensors[gone]
    save_file(tensors, file)
    with pytest.raises(UserError) as error:
        made.canonical(tmp_path)
    assert str(error.value) == (
        f"the checkpoint has no tensor {gone!r} among its {len(tensors)}\n"
        "  remedy: fetch the checkpoint again: it is incomplete, or its config.json belongs to another model"
    )


def test_a_tensor_of_another_shape_is_named(tmp_path):
    import json

    made.save_paddle(made.ernie_model(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_key_value_heads": 1}))
    with pytest.raises(UserError) as error:
        made.canonical(tmp_path)
    assert str(error.value).splitlines()[0] == (
        "tensor 'ernie.layers.0.self_attn.qkv_proj.weight' has the shape [64, 256], but the model's config asks for [64, 192]"
    )
