"""config.json -> decoder spec: what is read, what is refused and how."""

import json

import pytest
from transformers import Ernie4_5Config, LlamaConfig

from core.errors import UserError
from core.models.ernie45 import Ernie45
from core.models.llama import Llama
from core.models.loading import read_config
from core.models.plugin import register_models
from core.models.sources import resolve
from tests.models import checkpoints as made

ERNIE = json.loads(Ernie4_5Config().to_json_string(use_diff=False))
LLAMA = json.loads(LlamaConfig(**made.TINY).to_json_string(use_diff=False))
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_transformers_defaults_are_ernie_03b():
    spec = Ernie45().spec(ERNIE)
    assert (spec.num_layers, spec.hidden, spec.num_heads, spec.num_kv_heads, spec.head_dim) == (18, 1024, 16, 2, 128)
    assert (spec.intermediate, spec.vocab, spec.max_positions) == (3072, 103424, 131072)
    assert (spec.rope_theta, spec.rope_style, spec.rope_scaling, spec.norm_eps) == (500000.0, "interleaved", None, 1e-5)
    assert (spec.tied_head, spec.bos_token_id, spec.eos_token_ids, spec.pad_token_id) == (True, 1, (2,), 0)
    assert (spec.q_width, spec.parameters) == (2048, 360_748_032)


def test_older_configs_have_theta_at_the_top():
    config = {key: value for key, value in ERNIE.items() if key != "rope_parameters"} | {
        "rope_theta": 10000,
        "rope_scaling": None,
    }
    assert Ernie45().spec(config).rope_theta == 10000.0


def test_offers_answer_to_the_families_own_architectures():
    offered = {offer.name: (offer.architectures, offer.family()) for offer in register_models()}
    assert all(architectures == family.architectures for architectures, family in offered.values())
    assert {name: architectures for name, (architectures, _) in offered.items()} == {
        "ernie45": ("Ernie4_5_ForCausalLM", "Ernie4_5ForCausalLM"),
        "llama": ("LlamaForCausalLM",),
    }


def test_llama_defaults():
    config = {key: value for key, value in LLAMA.items() if key not in ("num_key_value_heads", "head_dim", "rope_parameters")}
    spec = Llama().spec(config)
    assert (spec.rope_style, spec.rope_theta, spec.num_kv_heads, spec.head_dim) == ("half", 10000.0, 4, 16)
    assert spec.tied_head is False


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_llama3_and_linear_scaling(key):
    config = {name: value for name, value in LLAMA.items() if name != "rope_parameters"} | {"rope_theta": 500000.0}
    assert Llama().spec(config | {key: LLAMA3}).rope_scaling == LLAMA3
    linear = Llama().spec(config | {key: {"type": "linear", "factor": 4}})
    assert (linear.rope_scaling, linear.rope_theta) == ({"rope_type": "linear", "factor": 4.0}, 500000.0)


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        (
            Llama(),
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
            "the model's rope type is 'yarn', but this decoder only does default, linear and llama3\n"
            "  set by: rope_parameters in the model's config\n"
            "  remedy: choose a checkpoint without that scaling",
        ),
        (
            Llama(),
            {"attention_bias": True},
            "the model's attention_bias is True, but this decoder only does projections without bias\n"
            "  set by: attention_bias in the model's config\n"
            "  remedy: choose a checkpoint of a family that is listed by --list-plugins",
        ),
        (
            Llama(),
            {"mlp_bias": True},
            "the model's mlp_bias is True, but this decoder only does projections without bias\n"
            "  set by: mlp_bias in the model's config\n"
            "  remedy: choose a checkpoint of a family that is listed by --list-plugins",
        ),
        (
            Ernie45(),
            {"hidden_act": "gelu"},
            "the model's hidden_act is 'gelu', but this decoder only does silu\n"
            "  set by: hidden_act in the model's config\n"
            "  remedy: choose a checkpoint of a family that is listed by --list-plugins",
        ),
        (
            Ernie45(),
            {"num_hidden_layers": None},
            "the model's config has no num_hidden_layers\n"
            "  set by: num_hidden_layers in the model's config\n"
            "  remedy: fetch the checkpoint again",
        ),
        (
            Ernie45(),
            {"vocab_size": "many"},
            "the model's vocab_size must be a positive whole number, not 'many'\n  set by: vocab_size in the model's config",
        ),
        (
            Ernie45(),
            {"vocab_size": float("nan")},
            "the model's vocab_size must be a positive whole number, not nan\n  set by: vocab_size in the model's config",
        ),
        (
            Ernie45(),
            {"rms_norm_eps": float("inf")},
            "the model's rms_norm_eps must be a number above 0, not inf\n  set by: rms_norm_eps in the model's config",
        ),
        (
            Ernie45(),
            {"num_key_value_heads": 3},
            "the model's num_attention_heads 16 is not a multiple of its num_key_value_heads 3\n"
            "  set by: num_key_value_heads in the model's config",
        ),
        (
            Ernie45(),
            {"head_dim": 63},
            "the model's head_dim 63 is odd: rotary pairs need an even one\n  set by: head_dim in the model's config",
        ),
        (
            Ernie45(),
            {"eos_token_id": "</s>"},
            "the model's eos_token_id must be token ids, not '</s>'\n  set by: eos_token_id in the model's config",
        ),
    ],
)
def test_refusals_name_the_key(family, change, message):
    with pytest.raises(UserError) as error:
        family.spec((LLAMA if isinstance(family, Llama) else ERNIE) | change)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("family", "change"),
    [
        (Ernie45(), {"use_bias": True}),
        (Ernie45(), {"use_rmsnorm": False}),
        (Ernie45(), {"compression_ratio": 2.0}),
        (Ernie45(), {"moe_num_experts": 64}),
        (Ernie45(), {"quantization_config": {"quant_method": "fp8"}}),
        (Llama(), {"quantization_config": {"quant_method": "awq"}}),
        (Llama(), {"partial_rotary_factor": 0.5}),
    ],
)
def test_what_the_decoder_does_not_do_is_refused(family, change):
    [key] = change
    with pytest.raises(UserError, match=f"^the model's {key} is .* but this decoder only does"):
        family.spec((LLAMA if isinstance(family, Llama) else ERNIE) | change)


def test_eos_ids_gather_config_and_generation_config(tmp_path):
    made.save_pt(made.ernie_model(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": [2, 7]}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 2], "top_p": 0.7}))
    folder = resolve(str(tmp_path), {}, made.formats())
    spec = Ernie45().spec(read_config(folder, made.formats()))
    assert spec.eos_token_ids == (2, 7, 9)


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_number_format_is_read_under_either_key(tmp_path, key):
    made.save_pt(made.ernie_model(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["dtype"]
    (tmp_path / "config.json").write_text(json.dumps(config | {key: "float16"}))
    assert read_config(resolve(str(tmp_path), {}, made.formats()), made.formats())["dtype"] == "float16"


def test_the_plugin_module_loads_nothing_heavy():
    import subprocess
    import sys

    code = "import sys; from core.models import plugin as p; list(p.register_models()); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "ml_dtypes", "gguf", "huggingface_hub", "transformers"} & set(loaded)
