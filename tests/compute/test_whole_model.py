"""Tiny ERNIE-4.5 and Llama models against transformers: one prefill, split prompts, token by token, several at once."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import Ernie4_5Config, Ernie4_5ForCausalLM, LlamaConfig, LlamaForCausalLM

from core.compute.torch_backend.backend import TorchBackend
from core.interfaces.model import Weight, weight_names
from core.models.decoder import Decoder
from core.testing.inputs import PagedSequences, tiny_spec

SHAPE = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "eos_token_id": None,
}
SPEC = tiny_spec(num_layers=3, hidden=64, num_heads=4, num_kv_heads=2, head_dim=32, intermediate=96, vocab=320)


def ernie():
    model = Ernie4_5ForCausalLM(Ernie4_5Config(**SHAPE, rms_norm_eps=1e-5, tie_word_embeddings=True))
    return model, replace(SPEC, rope_style="interleaved", rope_theta=model.config.rope_parameters["rope_theta"])


def llama():
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    config = LlamaConfig(**SHAPE, rms_norm_eps=1e-6, tie_word_embeddings=False, rope_parameters=scaling)
    spec = replace(SPEC, rope_style="half", norm_eps=1e-6, tied_head=False, rope_scaling=scaling)
    return LlamaForCausalLM(config), spec


def weights(model, spec):
    """Canonical weights straight from the state dict."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    within = {
        "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "o": ("self_attn.o_proj",),
        "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
        "down": ("mlp.down_proj",),
        "input": ("input_layernorm",),
        "post": ("post_attention_layernorm",),
    }
    outside = {"embed": "model.embed_tokens", "head": "lm_head", "norm": "model.norm"}
    for name in weight_names(spec):
        if name.layer is None:
            names = [outside[name.role]]
        else:
            names = [f"model.layers.{name.layer}.{each}" for each in within[name.norm or name.role]]
        tied = name.role == "head" and spec.tied_head
        yield Weight(name, tuple(state[f"{each}.weight"] for each in names), tied)


class Checked:
    """A model by transformers, and the same through the backend."""

    def __init__(self, make, backend):
        torch.manual_seed(0)
        self.model, self.spec = make()
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                noise = torch.randn_like(parameter) * 0.15
                parameter.copy_(1 + noise if name.endswith("norm.weight") else noise)
        self.model.eval()
        self.backend = backend
        self.decoder = Decoder.load(self.spec, weights(self.model, self.spec), self.backend)

    def paged(self, page_size):
        self.kv = self.backend.kv_cache(self.spec, 1600 // page_size, page_size)
        return PagedSequences(self.kv.num_pages, page_size, seed=1)

    def logits(self, batch):
        return self.backend.to_host(self.decoder.forward(self.backend.upload(batch, self.spec, self.kv), self.kv))

    def expected(self, tokens):
        with torch.inference_mode():
            return self.model(torch.tensor([tokens])).logits[0].numpy()


@pytest.fixture(scope="module", params=[ernie, llama])
def checked(request, make_backend):
    return Checked(request.param, make_backend("float32"))


PROMPT = np.random.default_rng(0).integers(0, 320, 300).tolist()


@pytest.mark.parametrize("page_size", [16, 64])
@pytest.mark.parametrize(
    "pieces", [[300], [1] * 40, [7, 150, 1, 142], [128, 128, 44]], ids=["whole", "tokens", "uneven", "even"]
)
def test_a_prompt_gives_the_logits_of_transformers(checked, page_size, pieces):
    prompt = PROMPT[: sum(pieces)]
    paged, found, done = checked.paged(page_size), [], 0
    for piece in pieces:
        found.append(checked.logits(paged.step({0: prompt[done : done + piece]}, logits="all")))
        done += piece
    assert np.abs(np.concatenate(found) - checked.expected(prompt)).max() < 1e-4


@pytest.mark.parametrize("page_size", [16, 64])
def test_sequences_come_and_go_in_one_batch(checked, page_size):
    """Seven prompts, two more each step, the later ones split; all generate 32 tokens, greedily as transformers does."""
    random = np.random.default_rng(page_size)
    prompts = [random.integers(0, 320, length).tolist() for length in (1, 5, 16, 17, 64, 130, 200)]
    texts = []
    for prompt in prompts:
        generated = checked.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=32,
            min_new_tokens=32,
            do_sample=False,
            pad_token_id=0,
        )
        texts.append(generated[0].tolist())
    paged = checked.paged(page_size)
    sequences = [list(prompt) for prompt in prompts]
    done = [0] * 7
    for number in range(100):
        work = {}
        for index, sequence in enumerate(sequences[: 2 * number + 2]):
            if len(sequence) < len(prompts[index]) + 32:
                work[index] = sequence[done[index] : done[index] + (90 if index > 4 else 1000)]
        if not work:
            break
        batch = paged.step(work)
        best = checked.logits(batch).argmax(axis=1)
        for row, index in enumerate(paged.order):
            done[index] += len(work[index])
            if done[index] == len(sequences[index]):
                sequences[index].append(int(best[row]))
    assert sequences == texts


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.06), ("float16", 0.01)])
@pytest.mark.parametrize("make", [ernie, llama])
def test_half_precision_stays_close(make, dtype, tolerance):
    checked = Checked(make, TorchBackend("cpu", dtype, threads=1))
    found = checked.logits(checked.paged(16).step({0: PROMPT[:50]}, logits="all"))
    expected = checked.expected(PROMPT[:50])
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()
