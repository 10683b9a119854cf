"""PaddlePaddle says what torch says: in float32 the same greedy tokens, and logits that nothing parts by 1e-4."""

import numpy as np
import openai
import pytest

from core.compose import compose
from core.compose.build import fetched, load_model
from core.testing.inputs import PagedSequences
from core.text.tokenizer import load_tokenizer
from frontends.offline import LLM, SamplingParams
from tests.models import checkpoints as made
from tests.must_show.served import serving

pytestmark = pytest.mark.paddle

SMALL = {"dtype": "float32", "device": "cpu", "threads": 1, "max_model_len": 256, "max_num_seqs": 8, "block_size": 16}
ALLOWED = 1e-4
TEXT = "The capital of France is Paris, and the capital of Italy is Rome. In the north of the country lies Milan, where"
PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:",
    "Once upon a time, in a village at the foot of a mountain, there lived",
]


def loaded(backend, model):
    argv = ["--model", str(model), "--backend", backend, "--dtype", "float32", "--device", "cpu", "--threads", "1"]
    plan = fetched(compose([*argv, "--max-model-len", "256"], env={}))
    return plan, load_model(plan)


def logits_of(decoder, prompt):
    """A prompt in two parts, and a decoded token."""
    kv = decoder.backend.kv_cache(decoder.spec, 8, 16)
    paged = PagedSequences(8, 16, seed=1)
    found = []
    for piece in (prompt[:20], prompt[20:-1], prompt[-1:]):
        step = decoder.backend.upload(paged.step({0: piece}, logits="all"), decoder.spec, kv)
        found.append(np.array(decoder.backend.to_host(decoder.forward(step, kv))))
    return np.concatenate(found)


def tokens_of(decoder, prompts, count):
    """What follows each prompt, greedily, all of them in one batch."""
    backend, kv = decoder.backend, decoder.backend.kv_cache(decoder.spec, 40, 16)
    paged, work = PagedSequences(40, 16, seed=2), dict(enumerate(prompts))
    said = {sequence: [] for sequence in work}
    for _ in range(count):
        step = backend.upload(paged.step(work), decoder.spec, kv)
        best = backend.to_host(backend.argmax(decoder.forward(step, kv))).tolist()
        work = {sequence: [token] for sequence, token in zip(paged.order, best, strict=True)}
        for sequence, [token] in work.items():
            said[sequence].append(token)
    return said


def assert_close(logits, others):
    assert np.abs(logits).max() > 0.5  # a model that says nothing would agree with anything
    assert np.abs(logits - others).max() < ALLOWED


@pytest.mark.parametrize("model", ["random:tiny", pytest.param("demo", marks=pytest.mark.demo)])
def test_the_same_logits_and_greedy_tokens(model):
    """Of text: on random tokens the demo's float32 rounding alone is beyond the bound."""
    logits, said = [], []
    for backend in ("torch", "paddle"):
        plan, decoder = loaded(backend, model)
        logits.append(logits_of(decoder, list(load_tokenizer(plan.model, plan.config).encode(TEXT))))
        decoder.backend.close()
        with LLM(model, backend=backend, **SMALL) as llm:
            answers = llm.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=24, ignore_eos=True))
        said.append([answer.outputs[0].token_ids for answer in answers])
    assert_close(*logits)
    assert said[0] == said[1]


LAYOUTS = {
    "-PT": made.save_pt,
    "-PT, in shards": lambda model, folder: made.save_pt(model, folder, max_shard_size="20KB"),
    "-Paddle": made.save_paddle,
    "GGUF": lambda model, folder: made.save_gguf(model, folder / "model.gguf"),
}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_random_ernie_in_every_layout(tmp_path, layout, tied):
    path = LAYOUTS[layout](made.ernie_model(tie_word_embeddings=tied), tmp_path)
    draw = np.random.default_rng(0)
    prompts = [draw.integers(3, 320, length).tolist() for length in (60, 1, 17, 33)]
    logits, said = [], []
    for backend in ("torch", "paddle"):
        _, decoder = loaded(backend, path)
        logits.append(logits_of(decoder, prompts[0]))
        said.append(tokens_of(decoder, prompts, 32))
        decoder.backend.close()
    assert_close(*logits)
    assert min(len(set(tokens)) for tokens in said[0].values()) > 4
    assert said[0] == said[1]


@pytest.mark.demo
def test_over_http():
    """A stream, a cached prefix, a prompt in chunks, the rejection sampler, a stop string, logprobs, a form: as with any."""
    flags = ["--backend", "paddle", "--model", "demo", "--enable-prefix-caching", "--enable-chunked-prefill"]
    flags += ["--sampler", "rejection", "--max-num-batched-tokens", "64", "--max-num-seqs", "8", "--block-size", "16"]
    with serving(*flags) as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        system = {"role": "system", "content": "You answer questions about geography. " * 20}
        question = [system, {"role": "user", "content": "What is the capital of France?"}]
        options = {"model": "demo", "messages": question, "max_tokens": 16}
        first, again = (client.chat.completions.create(temperature=0, logprobs=True, **options) for _ in range(2))
        assert "Paris" in first.choices[0].message.content
        assert again.choices[0].message.content == first.choices[0].message.content
        assert again.usage.prompt_tokens_details.cached_tokens > 64
        assert all(entry.logprob <= 0 for entry in first.choices[0].logprobs.content)
        pieces = client.chat.completions.create(temperature=0, stream=True, **options)
        streamed = [piece.choices[0].delta.content or "" for piece in pieces if piece.choices]
        assert len(streamed) > 4
        assert "".join(streamed) == first.choices[0].message.content
        drawn = [client.chat.completions.create(temperature=0.9, top_p=0.9, seed=5, **options) for _ in range(2)]
        assert drawn[0].choices[0].message.content == drawn[1].choices[0].message.content
        stopped = client.chat.completions.create(temperature=0, stop=["Paris"], **options)
        assert "Paris" not in stopped.choices[0].message.content
        chosen = client.chat.completions.create(temperature=0, extra_body={"guided_choice": ["Rome", "Oslo"]}, **options)
        assert chosen.choices[0].message.content in ("Rome", "Oslo")
