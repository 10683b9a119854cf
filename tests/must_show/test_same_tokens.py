"""Features change when tokens come, never which: twenty prompts, greedy, with each feature on and off."""

import numpy as np
import pytest

from frontends.offline import LLM, SamplingParams

NUM_PROMPTS = 20
TINY = {"dtype": "float32", "device": "cpu", "threads": 1, "max_model_len": 256, "max_num_seqs": 8, "block_size": 16}
# Left alone, this model says one token for ever.
GREEDY = SamplingParams(temperature=0, max_tokens=32, ignore_eos=True, logprobs=0, presence_penalty=2.0, repetition_penalty=2.0)

PREFIX = {"enable_prefix_caching": True}
SWAP = PREFIX | {"swap_space": 0.01}
FEW_PAGES = {"num_gpu_blocks_override": 24}
PARTITIONED = {"block_policy": "partitioned", "kv_cache_ratio": 0.75, "static_decode_blocks": 0}


def chunks(budget):
    return {"enable_chunked_prefill": True, "max_num_batched_tokens": budget}


WAYS = {
    "few pages": FEW_PAGES,
    "prefix": PREFIX,
    "prefix, few pages": PREFIX | FEW_PAGES,
    "prefix, few pages, chunks of 48": PREFIX | FEW_PAGES | chunks(48),
    "prefix, outputs are not kept": PREFIX | {"num_gpu_blocks_override": 40, "enable_output_caching": False},
    "swap": SWAP | FEW_PAGES,
    "swap, chunks of 48": SWAP | FEW_PAGES | chunks(48),
    "hardly any room to swap": SWAP | FEW_PAGES | {"swap_space": 0.0001},
    **{f"chunks of {budget}": chunks(budget) for budget in (64, 128, 256, 512)},
    "chunks of 64, several at once": chunks(64) | {"max_num_partial_prefills": 4, "max_long_partial_prefills": 2},
    "partitioned": PARTITIONED,
    "partitioned, pages ahead": PARTITIONED | {"static_decode_blocks": 2},
    "partitioned, few pages": PARTITIONED | FEW_PAGES,
    "partitioned, prefix, few pages, chunks of 48": PARTITIONED | PREFIX | FEW_PAGES | chunks(48),
    "partitioned, no part for growth": PARTITIONED | FEW_PAGES | {"kv_cache_ratio": 1.0},
    "rejection sampler": {"sampler": "rejection"},
}
RANKS = {
    "two ranks": {"tensor_parallel_size": 2},
    "two ranks, swap, few pages, chunks of 48": {"tensor_parallel_size": 2} | SWAP | FEW_PAGES | chunks(48),
}


def prompts():
    """Twenty, most of which begin like others; some are others, and some go on where another has ended."""
    draw = np.random.default_rng(4)
    beginnings = [draw.integers(3, 250, size).tolist() for size in (0, 40, 100, 128)]
    made = [beginnings[index % 4] + draw.integers(3, 250, draw.integers(1, 60)).tolist() for index in range(NUM_PROMPTS - 6)]
    return made + made[:3] + [[*prompt[:64], 7, 8] for prompt in made[3:6]]


def without_features(backend):
    with LLM("random:tiny", backend=backend, **TINY) as llm:
        answers = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts()], GREEDY)
    parts = [answer.outputs[0] for answer in answers]
    assert min(len(set(part.token_ids)) for part in parts) > 16
    return parts


@pytest.fixture(scope="module")
def plain(compute_backend):
    return without_features(compute_backend)


def assert_same(answers, parts):
    assert [answer.outputs[0].token_ids for answer in answers] == [part.token_ids for part in parts]
    for answer, part in zip(answers, parts, strict=True):
        assert answer.outputs[0].cumulative_logprob == pytest.approx(part.cumulative_logprob, abs=1e-3)


@pytest.mark.parametrize("way", WAYS)
def test_the_same_greedy_tokens(compute_backend, plain, way):
    check(TINY | WAYS[way] | {"backend": compute_backend}, plain)


@pytest.mark.parametrize("way", RANKS)
def test_the_same_greedy_tokens_of_several_ranks(way):
    check(TINY | RANKS[way], without_features("torch"))


def check(settings, plain):
    caches = "enable_prefix_caching" in settings
    with LLM("random:tiny", **settings) as llm:
        for _ in range(1 + caches):  # the second time much is found, the outputs included
            answers = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts()], GREEDY)
            assert_same(answers, plain)
        stats = llm.stats()
    assert (stats.cached_prompt_tokens > 0) == caches
    assert (sum(answer.num_cached_tokens for answer in answers) > 0) == caches
    assert (stats.preemptions > 0) == ("num_gpu_blocks_override" in settings)
    assert stats.pages_free + stats.pages_cached == stats.pages_total
