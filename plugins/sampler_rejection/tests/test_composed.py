"""The sampler in a whole engine, and the names by which it is chosen."""

import pytest

from core.compose import compose
from core.interfaces.request import SamplingParams
from frontends.offline import LLM

SMALL = {"dtype": "float32", "device": "cpu", "threads": 1, "max_num_seqs": 8, "max_model_len": 256, "block_size": 16}
DRAWN = SamplingParams(temperature=1.0, top_k=40, top_p=0.9, min_p=0.01, seed=7, max_tokens=24, ignore_eos=True)


def chosen(argv=(), env=None):
    plan = compose(["--model", "random:tiny", "--device", "cpu", *argv], env=env or {})
    return next((choice.name, choice.plugin, choice.origin) for choice in plan.choices if choice.kind == "sampler")


@pytest.mark.parametrize(
    ("argv", "env", "origin"),
    [
        (("--sampler", "rejection"), {}, "--sampler"),
        (("--plugins", "sampler_rejection"), {}, "--plugins"),
        ((), {"FD_SAMPLING_CLASS": "rejection"}, "$FD_SAMPLING_CLASS"),
    ],
)
def test_three_ways_to_choose_it(argv, env, origin):
    assert chosen(argv, env) == ("rejection", "sampler_rejection", origin)


@pytest.mark.parametrize("value", ["base", "base_non_truncated", "air"])
def test_the_other_sampling_classes_are_the_standard_sampler(value):
    assert chosen(env={"FD_SAMPLING_CLASS": value}) == ("standard", "sampler_standard", "$FD_SAMPLING_CLASS")


def test_a_seed_gives_the_same_tokens_alone_and_among_others(compute_backend):
    with LLM("random:tiny", backend=compute_backend, plugins=("sampler_rejection",), **SMALL) as llm:
        first = llm.generate(["Hello", "Good day to you", "Hello"], DRAWN)
        again = llm.generate(["Hello"], DRAWN)
    tokens = [answer.outputs[0].token_ids for answer in (*first, *again)]
    assert len(tokens[0]) == 24
    assert tokens[0] == tokens[2] == tokens[3] != tokens[1]


def test_a_nucleus_of_one_token_is_greedy(compute_backend):
    with LLM("random:tiny", backend=compute_backend, plugins=("sampler_rejection",), **SMALL) as llm:
        greedy = llm.generate(["Hello"], SamplingParams(temperature=0, max_tokens=24, ignore_eos=True))
        narrow = llm.generate(["Hello"], SamplingParams(temperature=1.0, top_p=1e-6, max_tokens=24, ignore_eos=True))
    assert greedy[0].outputs[0].token_ids == narrow[0].outputs[0].token_ids
