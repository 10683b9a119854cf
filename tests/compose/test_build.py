"""From a plan to live objects, with the real plugins and a model small enough to build in a second."""

import importlib
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from core.compose import compose
from core.compose.build import build_engine, checkpoint_formats, count_pages, create_front_end, create_quantizer
from core.compose.composition import attempt
from core.compose.first_pass import first_pass
from core.errors import UserError
from core.interfaces.frontend import FrontEnd
from core.interfaces.request import Request, SamplingParams
from core.plugin_manager import PluginManager
from core.serve import ahead
from tests.compose.fakes import CPU, CUDA, GIB

TINY = ["--model", "random:tiny", "--threads", "1", "--max-num-seqs", "4", "--max-model-len", "128"]


def generated(engine, prompts, length):
    for number, prompt in enumerate(prompts):
        params = SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True)
        engine.add(Request(request_id=str(number), prompt_token_ids=prompt, params=params))
    tokens = {str(number): [] for number in range(len(prompts))}
    while engine.has_work:
        for event in engine.step():
            assert event.error == ""
            tokens[event.request_id] += event.token_ids
    return list(tokens.values())


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--num-gpu-blocks-override", "6", "--block-size", "32"],
        ["--enable-chunked-prefill", "--max-num-batched-tokens", "8"],
    ],
)
def test_the_engine_of_a_plan_generates_the_same_whatever_its_pages_and_steps(argv):
    plan = compose([*TINY, "--dtype", "float32", *argv], env={}, probe=CPU)
    engine = build_engine(plan)
    try:
        assert engine.config.num_pages == plan.facts["kv.num_pages"]
        assert engine.config.page_size == plan.settings["block_size"]
        prompts = [[5, 6, 7], list(range(10, 40)), [9]]
        assert generated(engine, prompts, 6) == reference()
        stats = engine.stats()
        assert stats.pages_free == stats.pages_total == plan.facts["kv.num_pages"]
    finally:
        engine.close()


def reference(found=[]):  # noqa: B006 - computed once for all cases
    if not found:
        engine = build_engine(compose([*TINY, "--dtype", "float32", "--block-size", "16"], env={}, probe=CPU))
        found.append(generated(engine, [[5, 6, 7], list(range(10, 40)), [9]], 6))
        engine.close()
        assert [len(tokens) for tokens in found[0]] == [6, 6, 6]
    return found[0]


def test_the_seed_of_the_settings_is_that_of_random_weights():
    first, second = (
        generated(build_engine(compose([*TINY, "--seed", seed], env={}, probe=CPU)), [[5, 6, 7]], 8) for seed in ("1", "2")
    )
    assert first != second


def test_a_create_that_makes_nothing_is_not_served_without():
    plan = compose([*TINY, "--quantization", "wint8"], env={}, probe=CPU)
    manager = PluginManager.load_only(plan.plugins)
    [offered] = [each for each in manager.offers("quantizer") if each.name == "wint8"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manager, "offers", emptied(manager, offered))
        with pytest.raises(UserError) as refused:
            create_quantizer(plan, manager)
    assert str(refused.value) == (
        "create of the quantizer 'wint8' of plugin quant_wint8 of dovetail-serve 0.1.0 (quant_wint8.plugin) returned None, "
        "which is no core.interfaces.quantizer.Quantizer\n"
        "  remedy: mend or reinstall dovetail-serve\n"
        "  remedy: leave the plugin out: --without quant_wint8"
    )


def emptied(manager, empty):
    """What a manager offers, with one offer that makes nothing."""
    offers = manager.offers
    made = replace(empty, offer=replace(empty.offer, create=lambda context: None))
    return lambda kind: [made if each == empty else each for each in offers(kind)]


def test_the_front_end_gets_its_own_settings():
    front_end = create_front_end(compose([*TINY, "--port", "0"], env={}, probe=CPU))
    front_end.close()  # it has its port from the beginning
    assert isinstance(front_end, FrontEnd)


def test_a_plan_knows_the_format_that_reads_its_model():
    assert list(checkpoint_formats(compose(TINY, env={}, probe=CPU))) == ["random"]


def backend_with(free, total):
    return SimpleNamespace(memory=lambda: (free, total))


def test_on_cuda_the_pages_are_what_the_loaded_weights_leave():
    plan = compose(["--model", "random:tiny"], env={}, probe=CUDA)
    pages = count_pages(plan, backend_with(70 * GIB, 80 * GIB))
    left = int(80 * GIB * 0.9) - 10 * GIB - plan.facts["memory.activation_bytes"]
    assert pages == left // plan.facts["memory.kv_page_bytes"]


def test_on_cuda_a_given_number_of_pages_is_kept():
    plan = compose(["--model", "random:tiny", "--num-gpu-blocks-override", "77"], env={}, probe=CUDA)
    assert count_pages(plan, backend_with(0, 0)) == 77


def test_on_cuda_too_little_memory_after_loading_is_said_with_what_to_lower():
    plan = compose(["--model", "random:tiny", "--gpu-memory-utilization", "0.5"], env={}, probe=CUDA)
    with pytest.raises(UserError) as error:
        count_pages(plan, backend_with(40 * GIB + (13 << 20), 80 * GIB))
    assert str(error.value) == (
        "after loading, 0.25 MiB are left for KV pages, and one request of max_model_len 2048 needs 1.00 MiB\n"
        "  set by: --gpu-memory-utilization\n"
        "  remedy: raise --gpu-memory-utilization\n"
        "  remedy: lower --max-model-len, --max-num-batched-tokens or --max-num-seqs"
    )


def test_what_is_imported_ahead_is_what_the_chosen_backend_names_before_the_model_is_looked_for():
    told = []
    for flags in (["--model", "/nowhere"], [*TINY, "--backend", "none-such"]):
        found = attempt(
            first_pass(flags, {}), PluginManager.discover(), CPU, selected=lambda chosen: told.append(ahead(chosen))
        )
        assert found.plan is None
    (module,), nothing = told
    assert vars(importlib.import_module(module))["torch"] is sys.modules["torch"]
    assert nothing == ()
