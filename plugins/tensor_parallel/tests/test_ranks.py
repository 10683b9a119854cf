"""Models that two and four real processes share: the tokens of one process, in packed formats, with caches of two tiers."""

from __future__ import annotations

import psutil
import pytest

from core.compose import compose
from core.compose.build import load_part
from core.compose.probe import DeviceProbe
from core.engine.ranks import OtherRanks
from core.errors import EngineDeadError, UserError
from core.plugin_manager import PluginManager
from frontends.offline import LLM, SamplingParams

MODEL = "random:llama-tiny"  # its head is not the embedding: it does not say the same whatever it is asked
SETTINGS = {"dtype": "float32", "max_model_len": 256, "max_num_seqs": 8, "block_size": 16, "threads": 1}
PROMPTS = [[5, 6, 7], list(range(10, 90)), [9] * 20, [*range(10, 90), 3], [400, 17]]
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=1)
LOGPROBS = 1e-3
"""How far those of tokens may lie apart: float32 sums in another order, and what packed products round activations to."""
SMALL_POOL = {
    "enable_prefix_caching": True,
    "swap_space": 0.01,
    "num_gpu_blocks_override": 9,
    "max_model_len": 128,
    "max_num_seqs": 2,
}


def generate(llm):
    """Tokens, and the log-probability of each."""
    outputs = [result.outputs[0] for result in llm.generate(PROMPTS, GREEDY)]
    logprobs = [
        step[token].logprob for output in outputs for step, token in zip(output.logprobs or (), output.token_ids, strict=True)
    ]
    return [list(output.token_ids) for output in outputs], logprobs


def check_same(llm, tokens, logprobs):
    found, found_logprobs = generate(llm)
    assert found == tokens
    assert max(abs(one - other) for one, other in zip(logprobs, found_logprobs, strict=True)) < LOGPROBS


def opened(**settings):
    return LLM(**{"model": MODEL, **SETTINGS, **settings})


@pytest.mark.parametrize(
    ("ranks", "settings"),
    [
        (2, {"quantization": "wint4", "quant_wint4": {"group_size": 32}, **SMALL_POOL}),
        (4, {"quantization": "wint8", "quant_wint8": {"activations": "int16"}, "enable_prefix_caching": True}),
    ],
    ids=["two ranks, wint4, pages swapped out and in", "four ranks for two key/value heads, wint8, prefix caching"],
)
def test_ranks_give_the_tokens_of_one_alone(ranks, settings, monkeypatch):
    copies = []
    copy = OtherRanks.copy
    monkeypatch.setattr(OtherRanks, "copy", lambda self, out, *what: copies.append(out) or copy(self, out, *what))
    with opened(**settings) as llm:
        tokens, logprobs = generate(llm)
        assert generate(llm)[0] == tokens
    assert len({tuple(each) for each in tokens}) == len(tokens)
    with opened(**settings, tensor_parallel_size=ranks) as llm:
        for _ in range(3):
            check_same(llm, tokens, logprobs)
    assert set(copies) == ({True, False} if "swap_space" in settings else set())


def test_bfloat16_differs_by_the_rounding_of_partial_sums():
    """The bound that README.md states, for what each token of the prompts would be continued with."""
    first = SamplingParams(temperature=0, max_tokens=1, logprobs=512)

    def logits(ranks):
        with opened(dtype="bfloat16", tensor_parallel_size=ranks) as llm:
            results = llm.generate(PROMPTS, first)
        return [[result.outputs[0].logprobs[0][token].logprob for token in range(512)] for result in results]

    for one, other in zip(logits(1), logits(2), strict=True):
        largest = max(one) - min(one)
        assert max(abs(a - b) for a, b in zip(one, other, strict=True)) < 0.03 * largest


def test_two_ranks_and_what_becomes_of_one_when_the_other_is_killed():
    with opened() as llm:
        tokens, logprobs = generate(llm)
    me = psutil.Process()
    before = set(me.children())
    with opened(tensor_parallel_size=2) as llm:
        check_same(llm, tokens, logprobs)
        (rank,) = set(me.children()) - before
        assert {each.laddr.ip for each in rank.net_connections("inet")} == {"127.0.0.1"}, "ranks talk over loopback alone"
        rank.kill()
        with pytest.raises(EngineDeadError, match=rf"rank 1, the process {rank.pid}, was ended by SIGKILL \(out of memory\?\)"):
            llm.generate(PROMPTS, GREEDY)
    assert set(me.children()) == before


# --- composing --------------------------------------------------------------------------------------------------------------

CPU = DeviceProbe("a CPU", 8, (), 64 << 30, 60 << 30)


def planned(*flags, probe=CPU):
    return compose(["--model", "random:ernie-4.5-0.3b", *flags], env={}, probe=probe)


def test_memory_is_that_of_one_rank():
    one, two = planned(), planned("-tp", "2")
    four = planned("-tp", "4")
    facts, halves, quarters = one.facts, two.facts, four.facts
    norms = 2 * 1024 * (2 * 18 + 1)
    assert halves["memory.weights_bytes"] - norms == (facts["memory.weights_bytes"] - norms) / 2
    assert halves["memory.kv_page_bytes"] == facts["memory.kv_page_bytes"] / 2
    assert quarters["memory.kv_page_bytes"] == halves["memory.kv_page_bytes"], "two key/value heads: ranks share them"
    assert halves["memory.budget_bytes"] == facts["memory.budget_bytes"] / 2, "ranks share the machine's memory"
    assert [plan.settings["threads"] for plan in (one, two, four)] == [8, 4, 2]


def test_what_it_is_composed_of_is_shown():
    plan = planned("--tensor-parallel-size", "2")
    choice = plan.chosen("parallelism")
    assert (choice.name, choice.plugin, plan.facts["parallel.ranks"]) == ("tensor", "tensor_parallel", 2)
    assert plan.sections["tensor_parallel"] == {"size": 2}
    assert plan.origins["tensor_parallel.size"] == "--tensor-parallel-size"
    assert planned().facts["parallel.ranks"] == 1
    alone = compose(["--model", "random:tiny", "--without", "tensor_parallel"], env={}, probe=CPU)
    assert (alone.chosen("parallelism"), alone.settings["parallelism"]) == (None, "none")


def test_what_cannot_be_divided_is_refused_at_once_with_the_way_out():
    with pytest.raises(UserError) as refused:
        planned("--tensor-parallel-size", "6")
    assert str(refused.value) == (
        "6 ranks cannot have the same number of the 16 query heads of random:ernie-4.5-0.3b\n"
        "  set by: --tensor-parallel-size, --model\n"
        "  remedy: --tensor-parallel-size 4"
    )


def test_groups_have_to_divide_what_one_rank_has_of_a_row():
    assert planned("-tp", "8", "--quantization", "wint4").facts["shard.q_width"] == 256
    with pytest.raises(UserError) as refused:
        planned("-tp", "16", "--quantization", "wint4")
    assert str(refused.value) == (
        "groups of 128 weights do not divide the feed-forward width 192\n"
        "  set by: --quantization, default of quant_wint4.pad, default of quant_wint4.group_size, --model, -tp\n"
        "  remedy: --quant-wint4-pad: fill each row up with zeros\n"
        "  remedy: --quant-wint4-group-size 0: one scale a row"
    )


@pytest.mark.parametrize("packed", [(), ("--quantization", "wint8")])
def test_a_rank_holds_what_the_plan_says(packed):
    flags = ["--model", MODEL, "--dtype", "float32", "--torch-kernels", "reference", "--threads", "1", "-tp", "2", *packed]
    plan = compose(flags, env={}, probe=CPU)
    decoder = load_part(plan, PluginManager.load_only(plan.plugins), 1).decoder
    spec = decoder.spec
    assert (spec.num_heads, spec.num_kv_heads, spec.intermediate, spec.vocab) == (2, 1, 64, 256)
    unpacked = 4 * spec.hidden * (spec.vocab + 2 * spec.num_layers + 1)  # embedding and norms
    held = sum(linear.nbytes for linear in decoder.linears) + unpacked
    assert held == pytest.approx(
        plan.facts["memory.weights_bytes"], rel=0.1 if packed else 0
    )  # kernels pad matrices as small as these
    kv = decoder.backend.kv_cache(spec, 3, plan.settings["block_size"])
    assert kv.nbytes == 3 * plan.facts["memory.kv_page_bytes"]
