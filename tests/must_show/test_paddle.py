"""PaddlePaddle says what torch says: in float32 the same greedy tokens, and logits that nothing parts by 1e-4."""

import numpy as np
import openai
import pytest

from core.compose import compose
from core.compose.build import fetched, load_model
from core.testing.inputs import PagedSequences
from core.text.tokenizer import load_tokenizer
from frontends.offline import LLM, SamplingParams
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


def logits_of(backend, model):
    """Of text: on random tokens the demo's float32 rounding alone is beyond the bound."""
    argv = ["--model", model, "--backend", backend, "--dtype", "float32", "--device", "cpu", "--threads", "1"]
    plan = fetched(compose([*argv, "--max-model-len", "256"], env={}))
    decoder, prompt = load_model(plan), list(load_tokenizer(plan.model, plan.config).encode(TEXT))
    kv = decoder.backend.kv_cache(decoder.spec, 8, 16)
    paged = PagedSequences(8, 16, seed=1)
    found = []
    for piece in (prompt[:20], prompt[20:-1], prompt[-1:]):  # a prompt in two parts, and a decoded token
        step = decoder.backend.upload(paged.step({0: piece}, logits="all"), decoder.spec, kv)
        found.append(np.array(decoder.backend.to_host(decoder.forward(step, kv))))
    decoder.backend.close()
    return np.concatenate(found)


@pytest.mark.parametrize("model", ["random:tiny", pytest.param("demo", marks=pytest.mark.demo)])
def test_the_same_logits_and_greedy_tokens(model):
    torch, paddle = (logits_of(backend, model) for backend in ("torch", "paddle"))
    assert np.abs(torch).max() > 0.5  # a model that says nothing would agree with anything
    assert np.abs(torch - paddle).max() < ALLOWED
    said = []
    for backend in ("torch", "paddle"):
        with LLM(model, backend=backend, **SMALL) as llm:
            answers = llm.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=24, ignore_eos=True))
        said.append([answer.outputs[0].token_ids for answer in answers])
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
