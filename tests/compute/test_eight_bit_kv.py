"""Keys and values in eight bits: where they cannot be had, what they take, and that pages of them are pages like others."""

import pytest

from core.compose import compose
from core.compose.composition import attempt
from core.compose.first_pass import first_pass
from core.compute.torch_backend import kernels
from core.compute.torch_backend.native.backend import NativeBackend
from core.compute.torch_backend.native.build import NotBuiltError
from core.errors import UserError
from core.plugin_manager import PluginManager
from core.testing.inputs import tiny_spec
from frontends.offline import LLM, SamplingParams

EIGHT = ["--model", "random:tiny", "--device", "cpu", "--kv-cache-dtype", "int8"]


@pytest.mark.parametrize(
    ("argv", "rule"),
    [
        (["--torch-kernels", "reference"], "eight-bit-kv-in-plain-torch"),
        (["--dtype", "float16"], "eight-bit-kv-in-float16"),
    ],
)
def test_where_they_cannot_be_had_they_are_refused_with_a_way_out(argv, rule):
    tried = attempt(first_pass([*EIGHT, *argv], {}, None), PluginManager.discover())
    assert [violation.rule.id for violation in tried.violations] == [rule]


def test_a_page_takes_what_is_said():
    pages = []
    for argv in (EIGHT, EIGHT[:4]):
        plan = compose([*argv, "--dtype", "bfloat16"])
        spec, size = plan.spec, plan.settings["block_size"]
        eight = argv is EIGHT
        kv = NativeBackend("bfloat16", 1, kv_in_eight_bits=eight).kv_cache(spec, 3, size)
        assert kv.nbytes == 3 * plan.facts["memory.kv_page_bytes"]
        pages.append(plan.facts["memory.kv_page_bytes"])
    assert pages[0] / pages[1] == (spec.head_dim + 4) / (2 * spec.head_dim)


def test_without_native_kernels_or_for_other_heads_it_is_an_error_and_not_another_format(monkeypatch):
    with pytest.raises(UserError, match=r"no multiple of 16"):
        NativeBackend("float32", 1, kv_in_eight_bits=True).kv_cache(tiny_spec(head_dim=24), 4, 16)

    def none(*_, **__):
        raise NotBuiltError("there is no compiler")

    monkeypatch.setattr(kernels, "native_on_cpu", none)
    with pytest.raises(UserError, match=r"the native kernels cannot be had: there is no compiler"):
        kernels.on_cpu("auto", "float32", 1, kv_in_eight_bits=True)


def test_tokens_are_the_same_from_cached_pages_and_from_pages_that_were_away():
    prompts = [[7, 8, 9] * 20 + [number] for number in range(6)]
    told = []
    for more in ({}, {"enable_prefix_caching": True, "swap_space": 1, "num_gpu_blocks_override": 12, "max_num_seqs": 2}):
        with LLM("random:tiny", kv_cache_dtype="int8", block_size=16, max_model_len=128, threads=1, **more) as llm:
            for _ in range(2):
                outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))
                told.append([output.outputs[0].token_ids for output in outputs])
    assert all(each == told[0] for each in told)
