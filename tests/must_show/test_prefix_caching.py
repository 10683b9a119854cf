"""Prefix caching changes when tokens come, never which."""

import itertools
import json
import time
import urllib.request

import numpy as np
import openai
import pytest

from core.compose import compose
from core.errors import UserError
from frontends.offline import LLM, SamplingParams
from tests.must_show.served import serving

NUM_PROMPTS = 20
TINY = {"dtype": "float32", "device": "cpu", "threads": 1, "max_model_len": 256, "max_num_seqs": 8, "block_size": 16}
# Left alone, this model says one token for ever.
GREEDY = SamplingParams(temperature=0, max_tokens=32, ignore_eos=True, logprobs=0, presence_penalty=2.0, repetition_penalty=2.0)


def prompts():
    """Twenty, most of which begin like others; some are others, and some go on where another has ended."""
    draw = np.random.default_rng(4)
    beginnings = [draw.integers(3, 250, size).tolist() for size in (0, 40, 100, 128)]
    made = [beginnings[index % 4] + draw.integers(3, 250, draw.integers(1, 60)).tolist() for index in range(NUM_PROMPTS - 6)]
    return made + made[:3] + [[*prompt[:64], 7, 8] for prompt in made[3:6]]


@pytest.fixture(scope="module")
def plain():
    with LLM("random:tiny", **TINY) as llm:
        answers = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts()], GREEDY)
    parts = [answer.outputs[0] for answer in answers]
    assert min(len(set(part.token_ids)) for part in parts) > 16
    return parts


def assert_same(answers, parts):
    assert [answer.outputs[0].token_ids for answer in answers] == [part.token_ids for part in parts]
    for answer, part in zip(answers, parts, strict=True):
        assert answer.outputs[0].cumulative_logprob == pytest.approx(part.cumulative_logprob, abs=1e-3)


WAYS = {
    "room for all": {},
    "a pool that evicts": {"num_gpu_blocks_override": 24},
    "a pool that evicts, prompts in chunks": {
        "num_gpu_blocks_override": 24,
        "enable_chunked_prefill": True,
        "max_num_batched_tokens": 48,
    },
    "outputs are not kept": {"num_gpu_blocks_override": 40, "enable_output_caching": False},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_same_greedy_tokens_with_and_without(plain, way):
    with LLM("random:tiny", enable_prefix_caching=True, **TINY, **WAYS[way]) as llm:
        for _ in range(2):  # the second time much is found, the outputs included
            answers = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts()], GREEDY)
            assert_same(answers, plain)
        stats = llm.stats()
    assert stats.cached_prompt_tokens > 0
    assert sum(answer.num_cached_tokens for answer in answers) > 0
    assert (stats.preemptions > 0) == ("num_gpu_blocks_override" in WAYS[way])
    assert stats.pages_free + stats.pages_cached == stats.pages_total


def chosen(*flags, **overrides):
    return compose(["--model", "random:tiny", *flags], env={}, overrides=overrides).chosen("cache_policy").name


def test_ways_to_say_it():
    assert chosen() == "private"
    assert chosen("--enable-prefix-caching") == chosen("--plugins", "cache_prefix") == "prefix"
    assert chosen("--cache-policy", "prefix") == chosen(enable_prefix_caching=True) == "prefix"
    assert chosen("--no-enable-prefix-caching") == chosen(enable_prefix_caching=False) == "private"
    plan = compose(["--model", "random:tiny", "--enable-prefix-caching", "--no-enable-output-caching"], env={})
    assert plan.sections["cache_prefix"] == {"cache_outputs": False}


def test_output_caching_without_prefix_caching_is_refused():
    with pytest.raises(UserError, match="settings are given for cache_prefix, which is installed but not chosen"):
        compose(["--model", "random:tiny", "--enable-output-caching"], env={})


TALE = "Once upon a time, at the foot of a mountain, there lived a miller who had {} daughters and {} sons. "


@pytest.mark.demo
def test_time_to_first_token_of_a_known_prompt():
    with (
        serving("--enable-prefix-caching", "--max-model-len", "2048") as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        client.completions.create(model="demo", prompt="Warm up.", max_tokens=4)

        def ask(prompt):
            began, first, text, usage = time.monotonic(), None, "", None
            for chunk in client.completions.create(
                model="demo", prompt=prompt, temperature=0, max_tokens=8, stream=True, stream_options={"include_usage": True}
            ):
                first = first or time.monotonic() - began
                text += chunk.choices[0].text if chunk.choices else ""
                usage = chunk.usage or usage
            return first, text, usage

        ratios = []
        for number in itertools.count():
            prompt = "".join(TALE.format(number * 100 + i, i + 2) for i in range(40))
            unknown, text, usage = ask(prompt)
            known, again, usage_again = ask(prompt)
            assert 900 < usage.prompt_tokens < 1200, usage.prompt_tokens
            assert usage.prompt_tokens_details.cached_tokens <= 64, "only the common beginning"
            assert usage_again.prompt_tokens_details.cached_tokens == (usage.prompt_tokens - 1) // 64 * 64
            assert again == text
            ratios.append(unknown / known)
            if max(ratios) >= 5 or number == 2:
                break
        assert max(ratios) >= 5, f"the second time is {ratios} times as fast"
        with urllib.request.urlopen(f"{server.url}/metrics") as answer:
            metrics = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if line[:1] != "#")
        cached = next(float(value) for name, value in metrics.items() if name.startswith("dovetail_cached_prompt_tokens"))
        assert cached >= usage_again.prompt_tokens_details.cached_tokens
        body = {"model": "demo", "prompt": prompt, "max_tokens": 1, "cache_salt": "another tenant"}
        call = urllib.request.Request(
            f"{server.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(call) as answer:
            assert json.load(answer)["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
