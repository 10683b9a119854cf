"""Logits in float32 against transformers, for every layout, through a real backend: nothing differs by 1e-4."""

from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import Ernie4_5Config, Ernie4_5ForCausalLM

from core.interfaces.compute import SamplingRows, StepBatch
from core.models.decoder import Decoder
from core.models.loading import weights
from core.models.sources import resolve
from core.text.tokenizer import load_tokenizer
from tests.models import checkpoints as made

PAGE = 16
ALLOWED = 1e-4
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def step(token_ids, start, pages):
    """One sequence's tokens from ``start`` on, logits of all of them."""
    count = len(token_ids)
    positions = np.arange(start, start + count)
    sampling = SamplingRows(
        temperature=np.zeros(count, np.float32),
        top_k=np.zeros(count, np.int32),
        top_p=np.ones(count, np.float32),
        min_p=np.zeros(count, np.float32),
        seeds=np.zeros(count, np.uint64),
        positions=positions + 1,
        logprobs=np.full(count, -1, np.int32),
        all_greedy=True,
    )
    return StepBatch(
        token_ids=np.asarray(token_ids, np.int32),
        positions=positions.astype(np.int32),
        slots=pages[positions // PAGE].astype(np.int64) * PAGE + positions % PAGE,
        query_starts=np.array([0, count], np.int32),
        context_lens=np.array([start + count], np.int32),
        page_table=pages[None].astype(np.int32),
        logit_rows=np.arange(count),
        num_decodes=int(count == 1),
        sampling=sampling,
    )


@pytest.fixture(scope="module")
def ours(compute_backend, make_backend):
    """A checkpoint's logits of a prompt. Those of torch's native kernels, once plain torch is known to say the same."""

    def found(path, token_ids):
        plain = by(make_backend("float32"), path, token_ids)
        if compute_backend != "torch":
            return plain
        from core.compute.torch_backend.kernels import on_cpu

        native = by(on_cpu("native", "float32", 1), path, token_ids)
        assert np.abs(plain - native).max() < 2 * ALLOWED  # each may be off by as much
        return native

    return found


def by(backend, path, token_ids):
    """The prompt in three steps: most of it, the rest of it, and one decoded token; its pages out of order."""
    checkpoint, family, spec = made.opened(path)
    decoder = Decoder.load(spec, weights(checkpoint, family, spec), backend)
    count = -(-len(token_ids) // PAGE)
    kv = backend.kv_cache(spec, count + 2, PAGE)
    pages = np.arange(count + 1, 1, -1)
    edges = [0, len(token_ids) * 2 // 3, len(token_ids) - 1, len(token_ids)]
    found = []
    for start, end in pairwise(edges):
        uploaded = backend.upload(step(token_ids[start:end], start, pages), spec, kv)
        found.append(backend.to_host(decoder.forward(uploaded, kv)).copy())
    backend.close()
    return np.concatenate(found)


def theirs(model, token_ids):
    with torch.no_grad():
        return model(torch.tensor([token_ids])).logits[0].numpy()


def prompt(vocab, length=75, seed=1):
    return np.random.default_rng(seed).integers(3, vocab, length).tolist()


def assert_close(found, expected):
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert np.abs(expected).max() > 0.5  # a model that says nothing would agree with anything
    assert np.abs(found - expected).max() < ALLOWED


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("save", [made.save_pt, made.save_paddle])
def test_ernie(ours, tmp_path, save, tied):
    model = made.ernie_model(tie_word_embeddings=tied)
    token_ids = prompt(model.config.vocab_size)
    assert_close(ours(save(model, tmp_path), token_ids), theirs(model, token_ids))


@pytest.mark.parametrize("rope", [None, LLAMA3, {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}])
def test_hf_llama(ours, tmp_path, rope):
    model = made.llama_model(tie_word_embeddings=False, rope_parameters=rope)
    token_ids = prompt(model.config.vocab_size)
    assert_close(ours(made.save_pt(model, tmp_path), token_ids), theirs(model, token_ids))


def test_gguf_llama(ours, tmp_path):
    model = made.llama_model()
    token_ids = prompt(model.config.vocab_size)
    assert_close(ours(made.save_gguf(model, tmp_path / "m.gguf"), token_ids), theirs(model, token_ids))


def test_gguf_ernie(ours, tmp_path):
    model = made.ernie_model()
    token_ids = prompt(model.config.vocab_size)
    assert_close(ours(made.save_gguf(model, tmp_path / "m.gguf"), token_ids), theirs(model, token_ids))


def ernie_of(path: Path):
    """transformers' ERNIE-4.5 filled with what the gguf package reads and dequantizes: nothing of ours takes part."""
    reader = gguf.GGUFReader(path)

    def meta(key):
        return reader.get_field(f"llama.{key}").contents()

    config = Ernie4_5Config(
        vocab_size=meta("vocab_size"),
        hidden_size=meta("embedding_length"),
        intermediate_size=meta("feed_forward_length"),
        num_hidden_layers=meta("block_count"),
        num_attention_heads=meta("attention.head_count"),
        num_key_value_heads=meta("attention.head_count_kv"),
        head_dim=meta("rope.dimension_count"),
        max_position_embeddings=meta("context_length"),
        rms_norm_eps=meta("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": meta("rope.freq_base")},
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = Ernie4_5ForCausalLM(config)
    inner = {ggufs: hf for hf, ggufs in made.GGUF_NAMES.items()}
    state = {}
    for stored in reader.tensors:
        values = torch.from_numpy(np.array(gguf.quants.dequantize(stored.data, stored.tensor_type)))
        if stored.name.startswith("blk."):
            _, layer, name, _ = stored.name.split(".")
            state[f"model.layers.{layer}.{inner[name]}.weight"] = values
        else:
            state[
                {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[stored.name]
            ] = values
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its frequencies are no weights
    return model.eval()


TEXTS = [
    "The capital of France is Paris, and the capital of Italy is Rome. In the north of the country lies Milan, where",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) +",
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
]


@pytest.fixture(scope="module")
def demo():
    folder = resolve("demo", {}, made.formats())
    return folder, ernie_of(folder.path)


@pytest.mark.demo
@pytest.mark.parametrize("text", TEXTS, ids=["prose", "code", "chat"])
def test_the_demo_is_an_ernie(ours, demo, text):
    """On text. On random tokens this model's float32 rounding alone is beyond the bound: transformers differs from its own
    float64 by up to 4e-4 there, and its two attention implementations from each other by 3e-4.
    """
    folder, model = demo
    token_ids = list(load_tokenizer(folder, {}).encode(text))
    found, expected = ours(folder.path, token_ids), theirs(model, token_ids)
    assert_close(found, expected)
    assert (found.argmax(-1) == expected.argmax(-1)).all()
