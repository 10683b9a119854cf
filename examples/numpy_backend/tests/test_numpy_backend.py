"""The contract of every compute backend, what its plugin says, and what torch says beside it."""

import ast
from pathlib import Path

import numpy as np
import pytest
from backend_numpy.attention import PagedKV
from backend_numpy.backend import NumpyBackend

from core.testing import ComputeBackendContract, PluginContract, RulesContract
from core.testing.inputs import tiny_spec
from frontends.offline import LLM, SamplingParams

FOLDER = Path(__file__).parents[1]
REFUSED = "packed weights are refused by a rule"
OPEN = (
    "core.errors",
    "core.hookspecs",
    "core.host",
    "core.interfaces",
    "core.offers",
)  # to every plugin; core.host to backends
SMALL = {"dtype": "float32", "device": "cpu", "threads": 1, "max_model_len": 256, "max_num_seqs": 8, "block_size": 16}


class TestPlugin(PluginContract):
    plugin = "backend_numpy"
    readme = FOLDER


class TestRules(RulesContract):
    plugin = "backend_numpy"
    violating = {"numpy-multiplies-by-no-packed-weights": {"quantization": "wint8"}}


class TestNumpy(ComputeBackendContract):
    dtypes = ("float32",)
    xfail = {
        "test_a_quantized_linear_multiplies_by_the_unpacked_values": REFUSED,
        "test_a_quantizer_gets_one_part_at_a_time": REFUSED,
        "test_rows_that_belong_together_are_packed_together": REFUSED,
        "test_a_weight_that_comes_packed_is_placed_as_it_is": REFUSED,
    }

    def make(self, dtype):
        return NumpyBackend(threads=1)


def test_it_imports_what_is_open_to_backends():
    """Interfaces, and beside core.compute's folders what is shared by them: nothing of another backend."""
    for file in (FOLDER / "backend_numpy").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            if module is not None and module.startswith("core.compute"):
                names = [f"{module}.{name.name}" for name in node.names] if module == "core.compute" else [module]
                assert not any("_backend" in name for name in names), f"{file.name} imports {names}"
            elif module is not None and module.startswith("core"):
                assert module.startswith(OPEN), f"{file.name} imports {module}"


def test_pages_that_are_saved_come_back_elsewhere():
    kv = PagedKV(tiny_spec(), 8, 4)
    kv.memory[:] = np.random.default_rng(0).standard_normal(kv.memory.shape)
    before = kv.memory.copy()
    host = kv.host_pages(4)
    host.save(np.array([3, 1], np.int32), np.array([0, 2], np.int32)).wait()
    host.restore(np.array([2, 0], np.int32), np.array([6, 7], np.int32)).wait()
    host.close()
    assert np.array_equal(kv.memory[:, :, [6, 7]], before[:, :, [1, 3]])
    assert np.array_equal(kv.memory[:, :, :6], before[:, :, :6])


@pytest.fixture(scope="module")
def prompts():
    draw = np.random.default_rng(1)
    beginning = draw.integers(3, 250, 40).tolist()
    return [{"prompt_token_ids": beginning[: 40 - 5 * each] + draw.integers(3, 250, 9).tolist()} for each in range(6)]


def said(prompts, backend, **settings):
    """Greedily, with penalties, since left alone this model says one token for ever; then drawn. And what became of it."""
    greedy = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, presence_penalty=2.0, repetition_penalty=2.0)
    drawn = SamplingParams(temperature=1.0, top_p=0.9, seed=3, max_tokens=12, ignore_eos=True)
    with LLM("random:tiny", backend=backend, **SMALL, **settings) as llm:
        answers = [answer.outputs[0] for params in (greedy, drawn) for answer in llm.generate(prompts, params)]
        stats = llm.stats()
    assert len({tuple(answer.token_ids) for answer in answers}) == len(answers)
    return [answer.token_ids for answer in answers], stats


@pytest.fixture(scope="module")
def of_torch(prompts):
    return said(prompts, "torch")[0]


FEATURES = {
    "nothing": {},
    "prefixes, chunks, few pages, swapping": {
        "enable_prefix_caching": True,
        "swap_space": 0.01,
        "enable_chunked_prefill": True,
        "max_num_batched_tokens": 32,
        "num_gpu_blocks_override": 17,
    },
}


@pytest.mark.parametrize("features", FEATURES)
def test_it_says_what_torch_says(prompts, of_torch, features):
    tokens, stats = said(prompts, "numpy", **FEATURES[features])
    assert tokens == of_torch
    assert (stats.preemptions > 0) == (stats.cached_prompt_tokens > 0) == bool(FEATURES[features])
