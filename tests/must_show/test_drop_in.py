"""FastDeploy's command for ERNIE-4.5-0.3B as its page has it, over a checkpoint in its format: composed, explained, served."""

import io
import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import openai
import pytest
import sentencepiece

from tests.models.checkpoints import paddle_arrays, write_checkpoint
from tests.must_show.served import ROOT, serving

# ERNIE-4.5-0.3B, of one layer instead of eighteen
CONFIG = {
    "architectures": ["Ernie4_5_ForCausalLM"],
    "model_type": "ernie4_5",
    "dtype": "bfloat16",
    "vocab_size": 103_424,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 1,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 131_072,
    "rope_theta": 500_000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "use_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "compression_ratio": 1.0,
    "tensor_parallel_degree": 1,
    "fuse_rope": True,
}
PIECES = 420  # of the tokenizer; nothing beyond them is ever likely
COMMAND = (
    *("--tensor-parallel-size", "1", "--quantization", "wint4", "--max-model-len", "32768", "--kv-cache-ratio", "0.75"),
    *("--max-num-seqs", "128", "--enable-prefix-caching", "--swap-space", "50", "--enable-chunked-prefill"),
)
VARIABLES = {"ENABLE_V1_KVCACHE_SCHEDULER": "1", "FD_SAMPLING_CLASS": "rejection"}
SYSTEM = "You are an assistant that answers briefly. " * 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """ERNIE-4.5-0.3B-Paddle: seeded weights, and a small SentencePiece model."""
    folder = tmp_path_factory.mktemp("baidu") / "ERNIE-4.5-0.3B-Paddle"
    write_checkpoint(folder, CONFIG, paddle_arrays(seeded_weights(), CONFIG))
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([SYSTEM, *(f"line {n}: the quick brown fox jumps over the lazy dog" for n in range(200))]),
        model_writer=written,
        vocab_size=PIECES,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        control_symbols=["<|begin_of_sentence|>", "<|end_of_sentence|>"],
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "cls_token": "<|begin_of_sentence|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Ernie4_5_Tokenizer", **named}))
    (folder / "generation_config.json").write_text(json.dumps({"top_k": 20, "top_p": 0.8, "temperature": 0.8}))
    return folder


def seeded_weights():
    draw = np.random.default_rng(3)

    def matrix(rows, columns, spread=0.03):
        return (draw.standard_normal((rows, columns), np.float32) * np.float32(spread)).astype(ml_dtypes.bfloat16)

    def ones(width):
        return np.ones(width, ml_dtypes.bfloat16)

    hidden, attention, keys, inner = 1024, 2048, 256, 3072
    embedding = np.zeros((CONFIG["vocab_size"], hidden), ml_dtypes.bfloat16)
    embedding[:PIECES] = matrix(PIECES, hidden, 0.1)
    layer = "model.layers.0."
    return {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": ones(hidden),
        f"{layer}input_layernorm.weight": ones(hidden),
        f"{layer}post_attention_layernorm.weight": ones(hidden),
        f"{layer}self_attn.q_proj.weight": matrix(attention, hidden),
        f"{layer}self_attn.k_proj.weight": matrix(keys, hidden),
        f"{layer}self_attn.v_proj.weight": matrix(keys, hidden),
        f"{layer}self_attn.o_proj.weight": matrix(hidden, attention),
        f"{layer}mlp.gate_proj.weight": matrix(inner, hidden),
        f"{layer}mlp.up_proj.weight": matrix(inner, hidden),
        f"{layer}mlp.down_proj.weight": matrix(hidden, inner),
    }


@pytest.fixture(autouse=True, scope="module")
def variables():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in VARIABLES.items():
            patch.setenv(name, value)
        yield


def printed(*argv):
    command = [sys.executable, "-m", "core.serve", *argv, "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def explained(folder):
    return [" ".join(line.split()) for line in printed("--model", str(folder), *COMMAND, "--explain").splitlines()]


@pytest.mark.parametrize(
    ("choice", "origin"),
    [
        ("block policy global plugin kv_blocks", "$ENABLE_V1_KVCACHE_SCHEDULER"),
        ("sampler rejection plugin sampler_rejection", "$FD_SAMPLING_CLASS"),
        ("quantizer wint4 plugin quant_wint4", "--quantization"),
        ("cache policy prefix plugin cache_prefix", "--enable-prefix-caching"),
        ("scheduler chunked plugin prefill_chunked", "--enable-chunked-prefill"),
        ("model ernie45 plugin decoder_models", "default"),
        ("checkpoint format safetensors plugin decoder_models", "default"),
        ("size 1", "--tensor-parallel-size"),
        ("max_model_len 32768", "--max-model-len"),
        ("max_num_seqs 128", "--max-num-seqs"),
        ("swap_space 50", "--swap-space"),
        ("kv_cache_ratio 0.75", "--kv-cache-ratio"),
    ],
)
def test_each_choice_is_listed_with_its_origin(explained, choice, origin):
    found = [line for line in explained if line.startswith(choice)]
    assert found, f"no line begins with {choice!r}"
    assert found[0].endswith(f" {origin}")


def test_what_has_no_effect_is_told(explained):
    assert any(line.startswith("--kv-cache-ratio 0.75 has no effect: under the global block policy") for line in explained)


def test_underscores_a_yaml_file_and_our_own_way_say_the_same(folder, tmp_path, monkeypatch):
    dumped = printed("--model", str(folder), *COMMAND, "--dump-config")
    underscores = [word.replace("-", "_").replace("__", "--", 1) if word.startswith("--") else word for word in COMMAND]
    assert underscores[0] == "--tensor_parallel_size"
    assert printed("--model", str(folder), *underscores, "--dump-config") == dumped
    file = tmp_path / "server.yaml"
    file.write_text(
        f"model: {folder}\ntensor_parallel_size: 1\nquantization: wint4\nmax_model_len: 32768\nkv_cache_ratio: 0.75\n"
        "max_num_seqs: 128\nenable_prefix_caching: true\nswap_space: 50\nenable_chunked_prefill: true\n"
    )
    assert printed("--config", str(file), "--dump-config") == dumped
    ours = tmp_path / "server.toml"
    ours.write_text(dumped)
    for name in VARIABLES:
        monkeypatch.delenv(name)
    assert printed("--config", str(ours), "--dump-config") == dumped


def test_the_command_starts_a_server_that_answers(folder):
    with serving("--model", str(folder), *COMMAND, "--device", "cpu", "--threads", "1") as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            [model] = client.models.list().data
            assert (model.id, model.max_model_len) == (str(folder), 32768)
            messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "the quick brown"}]
            asked = {"model": model.id, "messages": messages, "max_tokens": 12, "seed": 5, "extra_body": {"ignore_eos": True}}
            first = client.chat.completions.create(**asked)
            again = client.chat.completions.create(**asked)
            chunks = list(client.chat.completions.create(**asked, stream=True))
        assert server.terminate() == 0
    assert first.usage.completion_tokens == 12
    assert first.choices[0].finish_reason == "length"
    assert first.choices[0].message.content
    assert again.choices[0].message.content == first.choices[0].message.content
    assert (
        "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == first.choices[0].message.content
    )
    assert again.usage.prompt_tokens_details.cached_tokens >= 64 * (first.usage.prompt_tokens // 64 - 1) > 0
