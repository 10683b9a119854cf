"""Logits and greedy tokens against transformers in fp32, through every layout and every way a batch can come about."""

import gc
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Ernie4_5Config, Ernie4_5ForCausalLM

from core.compose import compose
from core.compose.build import load_decoder
from core.compute.torch_backend.kernels import on_cpu
from core.interfaces.compute import SamplingRows, StepBatch
from core.models.sources import fetch
from core.plugin_manager import PluginManager
from frontends.offline import LLM, SamplingParams
from tests.models.checkpoints import canonical, ernie_model, llama_model, save_paddle, save_pt

NUM_PROMPTS, NUM_TOKENS = 20, 64
UNDECIDED = 2e-4  # logits may be off by half as much on either side: below it either token is right
SEED = 6
TINY = {"num_hidden_layers": 3, "max_position_embeddings": 256}


TEXTS = (
    "The sea",
    "Snow is",
    "What is the capital of France? It is",
    "def fibonacci(n):\n    if n < 2:",
    "Once upon a time, in a village at the foot of a mountain, there lived",
    "1, 1, 2, 3, 5, 8,",
    "Water boils at a temperature of",
    "Dear Sir or Madam,\n\nI am writing to ask whether",
    "The three primary colours are",
    "for i in range(10):",
    "In 1969, Neil Armstrong became the first person to",
    "<html>\n<head>\n<title>",
    "Photosynthesis is the process by which plants",
    "Q: How many legs has a spider?\nA:",
    "El perro corre por la",
    "SELECT name, age FROM people WHERE",
    "She opened the door and saw, to her surprise, that the whole room was filled with",
    "The list of planets, from the nearest to the sun outward, begins with Mercury, Venus,",
    "import numpy as np\n\nx = np.zeros((3, 3))\nprint(",
    "A good bread needs flour, water, salt and",
)


@dataclass
class Case:
    """A checkpoint, and what transformers says of it: for each prompt its logits and 64 greedy tokens."""

    model: str
    prompts: list[list[int]]
    logits: list[np.ndarray]
    tokens: list[list[int]]


@torch.inference_mode()
def asked(reference, name, prompts):
    logits = [reference(torch.tensor([prompt])).logits[0].numpy() for prompt in prompts]
    longest = max(map(len, prompts))
    answer = reference.generate(
        torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts]),
        attention_mask=torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
        do_sample=False,
        min_new_tokens=NUM_TOKENS,
        max_new_tokens=NUM_TOKENS,
        output_scores=True,
        return_dict_in_generate=True,
    )
    best, second = torch.stack(answer.scores).topk(2).values.unbind(-1)  # [tokens, prompts]
    closest = (best - second).min(0).values
    assert closest.min() > UNDECIDED, f"transformers wavers on prompt {closest.argmin()}, by {closest.min():g}: change it"
    return Case(name, prompts, logits, answer.sequences[:, longest:].tolist())


def random_prompts(vocab, seed):
    draw = np.random.default_rng(seed)
    return [draw.integers(3, vocab, size).tolist() for size in draw.integers(1, 100, NUM_PROMPTS)]


def save_tokenizer(folder):
    """One token a byte; the prompts here are ids."""
    bytes_ = {text: index for index, text in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=bytes_, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


def texts(tokenizer):
    """Twenty beginnings of texts of all kinds and lengths, as ids."""
    return [tokenizer.encode(text) for text in TEXTS]


def demo_model():
    """transformers' ERNIE-4.5, filled with the dequantized weights of the demo's GGUF file."""
    plan = compose(["--model", "demo", "--dtype", "float32"], env={})
    folder, spec = fetch(plan.model, plan.settings), plan.spec
    config = Ernie4_5Config(
        vocab_size=spec.vocab,
        hidden_size=spec.hidden,
        intermediate_size=spec.intermediate,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        num_key_value_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        max_position_embeddings=spec.max_positions,
        rms_norm_eps=spec.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=spec.bos_token_id,
        eos_token_id=spec.eos_token_ids[0],
        pad_token_id=0,
    )
    model = Ernie4_5ForCausalLM(config).eval()
    state = theirs(canonical(folder.path), spec)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(state.pop(name), dtype=np.float32)))
    assert not state
    return model


def theirs(weights, spec):
    """Canonical weights under transformers' names."""
    state = {"model.embed_tokens.weight": weights["embed"], "model.norm.weight": weights["final_norm"]}
    for layer in range(spec.num_layers):
        ours, name = f"layers.{layer}.", f"model.layers.{layer}."
        q, k, v = np.split(weights[f"{ours}qkv"], [spec.q_width, spec.q_width + spec.kv_width])
        gate, up = np.split(weights[f"{ours}gate_up"], 2)
        state |= {
            f"{name}self_attn.q_proj.weight": q,
            f"{name}self_attn.k_proj.weight": k,
            f"{name}self_attn.v_proj.weight": v,
            f"{name}self_attn.o_proj.weight": weights[f"{ours}o"],
            f"{name}mlp.gate_proj.weight": gate,
            f"{name}mlp.up_proj.weight": up,
            f"{name}mlp.down_proj.weight": weights[f"{ours}down"],
            f"{name}input_layernorm.weight": weights[f"{ours}input_norm"],
            f"{name}post_attention_layernorm.weight": weights[f"{ours}post_norm"],
        }
    return state


@pytest.fixture(
    scope="module", params=["pt", "paddle", "llama", pytest.param("demo", marks=[pytest.mark.demo, pytest.mark.heavy])]
)
def case(request, tmp_path_factory):
    folder = Path(tmp_path_factory.mktemp(request.param))
    if request.param == "demo":
        reference = demo_model()
        with LLM("demo") as llm:
            prompts = texts(llm.get_tokenizer())
        case = asked(reference, "demo", prompts)
    else:
        reference = llama_model(**TINY) if request.param == "llama" else ernie_model(**TINY)
        save = save_paddle if request.param == "paddle" else save_pt
        save(reference, folder)
        save_tokenizer(folder)
        case = asked(reference, str(folder), random_prompts(reference.config.vocab_size, SEED))
    del reference
    gc.collect()
    yield case
    gc.collect()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kernels", ["native", "reference"])
def test_logits(case, kernels):
    plan = compose(["--model", case.model, "--dtype", "float32", "--max-model-len", "256", "--block-size", "16"], env={})
    decoder = load_decoder(plan, on_cpu(kernels, "float32", 0), PluginManager.load_only(plan.plugins))
    kv = decoder.backend.kv_cache(decoder.spec, 16, 16)
    for prompt, expected in zip(case.prompts, case.logits, strict=True):
        step = decoder.backend.upload(one_prompt(prompt, 16), decoder.spec, kv)
        logits = decoder.backend.to_host(decoder.forward(step, kv))
        assert np.abs(logits - expected).max() < 1e-4


def one_prompt(prompt, page_size):
    """A step that computes one prompt, all of its logits wanted, on pages in no particular order."""
    size = len(prompt)
    pages = np.random.default_rng(size).permutation(16)[: -(-size // page_size)].astype(np.int32)
    positions = np.arange(size)
    return StepBatch(
        token_ids=np.array(prompt, np.int32),
        positions=positions.astype(np.int32),
        slots=(pages[positions // page_size] * page_size + positions % page_size).astype(np.int64),
        query_starts=np.array([0, size], np.int32),
        context_lens=np.array([size], np.int32),
        page_table=pages[None],
        logit_rows=positions.astype(np.int64),
        num_decodes=0,
        sampling=SamplingRows(
            temperature=np.zeros(size, np.float32),
            top_k=np.zeros(size, np.int32),
            top_p=np.ones(size, np.float32),
            min_p=np.zeros(size, np.float32),
            seeds=np.zeros(size, np.uint64),
            positions=positions + 1,
            logprobs=np.full(size, -1, np.int32),
            all_greedy=True,
        ),
    )


WAYS = {
    "one at a time": {"max_num_seqs": 1},
    "all at once, pages of 16": {"block_size": 16},
    "all at once, pages of 64": {"block_size": 64},
    "a pool that preempts": {"block_size": 16, "num_gpu_blocks_override": 40},
    "prompts in chunks": {"block_size": 16, "max_num_batched_tokens": 32},
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("way", WAYS)
def test_greedy_continuations(case, way):
    params = SamplingParams(temperature=0, min_tokens=NUM_TOKENS, max_tokens=NUM_TOKENS)
    threads = 0 if case.model == "demo" else 1  # two only wait for each other in a model this small
    settings = {"dtype": "float32", "threads": threads, "max_model_len": 256, "max_num_seqs": NUM_PROMPTS, **WAYS[way]}
    alone = way == "one at a time" and case.model == "demo"
    asked = slice(4 if alone else None)  # a minute and a half for all twenty, each of which the other ways compute too
    with LLM(case.model, **settings) as llm:
        answers = llm.generate([{"prompt_token_ids": prompt} for prompt in case.prompts[asked]], params)
        stats = llm.stats()
    for index, (answer, expected) in enumerate(zip(answers, case.tokens[asked], strict=True)):
        assert list(answer.outputs[0].token_ids) == expected, f"prompt {index}"
    assert (stats.preemptions > 0) == (way == "a pool that preempts")
    assert stats.pages_free == stats.pages_total
