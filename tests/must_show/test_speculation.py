"""Speculation changes how soon tokens come, never which."""

import time

import numpy as np
import pytest

from core.compose import compose
from core.errors import UserError
from frontends.offline import LLM, SamplingParams

TINY = {"dtype": "float32", "device": "cpu", "threads": 1, "max_model_len": 256, "max_num_seqs": 4, "block_size": 16}

STORY = """Mira the miller had four donkeys. The first donkey carried flour to the bakery. The second donkey carried stones \
to the bridge. The third donkey carried letters to the castle. The fourth donkey carried nothing at all, because it was old."""
EDIT = [
    {"role": "user", "content": f"Repeat the following text exactly, word for word, and add nothing:\n\n{STORY}"},
]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_same_tokens_in_fewer_steps(compute_backend, temperature):
    draw = np.random.default_rng(2)
    prompts = [{"prompt_token_ids": np.tile(draw.integers(3, 250, size), 3).tolist()} for size in (5, 12, 30)]
    params = [
        SamplingParams(temperature=temperature, seed=number, top_k=2, max_tokens=48, ignore_eos=True, logprobs=0)
        for number in range(3)
    ]
    found = {}
    for speculation in ("none", "ngram"):
        with LLM("random:tiny", backend=compute_backend, speculation=speculation, **TINY) as llm:
            answers = llm.generate(prompts, params)
            found[speculation] = [answer.outputs[0] for answer in answers], llm.stats()
    (plain, before), (guessed, after) = found["none"], found["ngram"]
    assert [part.token_ids for part in guessed] == [part.token_ids for part in plain]
    for ours, theirs in zip(guessed, plain, strict=True):
        assert ours.cumulative_logprob == pytest.approx(theirs.cumulative_logprob, abs=1e-3)
    assert (before.draft_tokens, before.generation_tokens, after.generation_tokens) == (0, 144, 144)
    assert after.accepted_draft_tokens > 10
    assert after.steps < before.steps


def test_ways_to_say_it():
    def chosen(*flags):
        choice = compose(["--model", "random:tiny", *flags], env={}).chosen("draft_proposer")
        return choice and choice.name

    assert chosen() is None
    assert chosen("--speculation", "ngram") == chosen("--plugins", "spec_ngram") == "ngram"
    assert chosen("--speculative-config", '{"method": "ngram", "num_speculative_tokens": 5}') == "ngram"
    assert chosen("--plugins", "spec_ngram", "--speculation", "none") is None
    with pytest.raises(UserError, match="speculative_config"):
        chosen("--speculative-config", '{"method": "mtp"}')


@pytest.mark.demo
@pytest.mark.perf
def test_a_text_that_is_to_be_repeated_comes_sooner():
    seconds, texts = {}, {}
    for speculation in ("none", "ngram"):
        with LLM("demo", speculation=speculation, max_model_len=1024, max_num_seqs=4) as llm:
            params = SamplingParams(temperature=0, max_tokens=80)
            llm.chat(EDIT, SamplingParams(temperature=0, max_tokens=4))
            best = []
            for _ in range(3):
                began = time.perf_counter()
                [answer] = llm.chat(EDIT, params)
                best.append(time.perf_counter() - began)
            seconds[speculation], texts[speculation] = min(best), answer.outputs[0].text
            stats = llm.stats()
    print(f"{seconds['none']:.2f} s without, {seconds['ngram']:.2f} s with: {stats.accepted_draft_tokens} right guesses")
    assert texts["ngram"] == texts["none"]
    assert seconds["none"] >= 1.5 * seconds["ngram"]
