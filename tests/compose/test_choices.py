import pickle
import tomllib

import pytest

import kv_blocks.plugin
from core.compose import compose
from core.compose.composition import attempt
from core.compose.first_pass import first_pass
from core.compose.probe import DeviceProbe
from core.compose.report import dump_text, explain_text, help_text, list_text
from core.errors import UserError
from core.interfaces.model import ModelFamily
from core.offers import CheckpointFormatOffer, ComputeBackendOffer, ModelOffer, SchedulerOffer
from tests.compose.fakes import CPU, CUDA, GIB, Gpu, Point, create, manager, plugin, quantizer, sampler


def planned(probe=CPU, installed=None, **settings):
    return compose([], env={}, overrides={"model": "random:tiny", **settings}, probe=probe, manager=installed or manager())


def refused(probe=CPU, installed=None, **settings):
    with pytest.raises(UserError) as error:
        planned(probe, installed, **settings)
    return [str(problem) for problem in error.value.problems]


def chosen(plan):
    return {choice.kind: (choice.name, choice.origin) for choice in plan.choices}


def test_kinds_nobody_names_are_filled_by_the_defaults():
    assert chosen(planned()) == {
        "compute_backend": ("torch", "default"),
        "front_end": ("openai_http", "default"),
        "scheduler": ("whole", "default"),
        "sampler": ("standard", "default"),
        "cache_policy": ("private", "default"),
        "block_policy": ("global", "default"),
        "graph_backend": ("eager", "default"),
        "model": ("ernie45", "default"),
        "checkpoint_format": ("random", "default"),
    }


def test_naming_a_plugin_chooses_what_it_offers_and_leaves_the_rest_to_the_defaults():
    installed = manager(Point("quant_x", plugin("m", register_quantizers=[quantizer("x", bits=4.0)])))
    assert chosen(planned(installed=installed))["cache_policy"] == ("private", "default")
    plan = planned(installed=installed, plugins="quant_x")
    assert chosen(plan)["quantizer"] == ("x", "LLM(plugins=...)")
    assert plan.settings["quantization"] == "x"
    assert plan.facts["quantizer.bits"] == 4.0
    assert plan.facts["memory.weights_bytes"] < planned(installed=installed).facts["memory.weights_bytes"]


def test_none_chooses_no_quantizer_though_its_plugin_is_named():
    installed = manager(Point("quant_x", plugin("m", register_quantizers=[quantizer("x")])))
    plan = planned(installed=installed, plugins="quant_x", quantization="none")
    assert plan.chosen("quantizer") is None
    assert [str(warning) for warning in plan.warnings] == [
        "nothing of plugin quant_x is used: other offers were chosen by name\n"
        "  set by: LLM(plugins=...)\n"
        "  remedy: drop quant_x"
    ]


@pytest.mark.parametrize(
    ("argv", "env", "where"),
    [
        (["--sampler", "standard", "--plugins", "sampler_x"], {}, "--plugins, --sampler"),
        (["--plugins", "sampler_x"], {"DOVETAIL_SAMPLER": "standard"}, "--plugins, $DOVETAIL_SAMPLER"),
        (["--sampler", "standard"], {"DOVETAIL_PLUGINS": "sampler_x"}, None),  # flags go before variables
        (["--sampler", "standard", "--plugins", "sampler_x,sampler_standard"], {}, None),  # says which of the two
        (["--sampler", "x", "--plugins", "sampler_x"], {}, None),
    ],
)
def test_a_plugin_and_an_offer_of_another_that_are_named_together(argv, env, where):
    installed = manager(Point("sampler_x", plugin("m", register_samplers=[sampler("x")])))
    found = attempt(first_pass([*argv, "--model", "random:tiny"], env), installed, CPU)
    place = (where or "").partition(", ")[2]
    assert [str(problem) for problem in found.problems] == (
        [
            f"plugin sampler_x is named, and nothing of it can be used beside the sampler standard\n  set by: {where}\n"
            f"  remedy: drop sampler_x\n  remedy: drop {place}"
        ]
        if where
        else []
    )


def test_an_offer_named_by_its_setting_loads_its_plugin():
    plan = planned(scheduler="chunked")
    assert chosen(plan)["scheduler"] == ("chunked", "LLM(scheduler=...)")
    assert plan.sections["prefill_chunked"] == {"most": 1}
    assert plan.sections.keys() == {"openai_http", "prefill_chunked"}


def test_an_unknown_offer_says_which_there_are():
    assert refused(sampler="standrad") == [
        "no installed plugin offers the sampler 'standrad'; did you mean 'standard'?\n"
        "  set by: LLM(sampler=...)\n"
        "  remedy: one of: standard"
    ]


def test_a_default_that_is_left_out_says_what_could_take_its_place():
    other = Point("sampler_x", plugin("m", register_samplers=[sampler("x")]))
    assert refused(installed=manager(other, blocked=["sampler_standard"]), without="sampler_standard") == [
        "nothing fills the kind sampler: its default, the plugin sampler_standard, is left out\n"
        "  set by: LLM(without=...)\n"
        "  remedy: --sampler x (plugin sampler_x)\n"
        "  remedy: drop sampler_standard from LLM(without=...)"
    ]


def test_a_plugin_wanted_and_left_out():
    assert refused(installed=manager(blocked=["plain"]), without="plain", plugins="plain,openai_http")[0] == (
        "plugin plain is both wanted and left out\n  set by: LLM(plugins=...)\n  remedy: drop plain from --without"
    )


def test_a_broken_plugin_that_is_merely_installed_is_one_warning():
    plan = planned(installed=manager(Point("bad", ImportError("no kernels"))))
    [warning] = plan.warnings
    assert str(warning).startswith("plugin bad of testdist 1.0 (no kernels) is broken and left out: ImportError: no kernels (")
    assert "\n" not in str(warning)


# --- what was left open -------------------------------------------------------------------------------------------------


def test_a_cpu_without_anything_said():
    plan = planned()
    assert {name: plan.settings[name] for name in ("device", "dtype", "threads", "max_model_len", "max_num_seqs")} == {
        "device": "cpu",
        "dtype": "bfloat16",
        "threads": 4,
        "max_model_len": 2048,
        "max_num_seqs": 128,
    }
    assert plan.settings["max_num_batched_tokens"] == 8192
    assert plan.settings["served_model_name"] == ("random:tiny",)
    assert plan.facts["kv.num_pages"] == 128 * 2048 // 64
    assert plan.reasons["device"] == "no CUDA device was found"
    assert plan.reasons["max_model_len"] == "the model's positions"
    assert plan.reasons["kv.num_pages"] == "all requests at their longest"
    assert plan.origins["max_model_len"] == "auto"


def test_a_cuda_device_is_taken_when_there_is_one():
    plan = planned(CUDA)
    assert (plan.settings["device"], plan.reasons["device"]) == ("cuda", "found A Test GPU")
    assert plan.facts["device.capability"] == 9.0
    assert plan.facts["memory.budget_bytes"] == int(80 * GIB * 0.9) - 2 * GIB


def test_an_old_device_gets_float16():
    old = DeviceProbe("c", 1, (), GIB, GIB, (Gpu("Old", 7.5, 8 * GIB, 8 * GIB),))
    plan = planned(old)
    assert (plan.settings["dtype"], plan.reasons["dtype"]) == ("float16", "a device of capability 7.5 has no bfloat16")


def test_a_backend_that_lacks_the_usual_number_format_gets_its_best():
    offer = ComputeBackendOffer(
        name="narrow", summary="n", framework="fake", dtypes={"cpu": ("float32", "float16")}, create=create
    )
    installed = manager(Point("narrow", plugin("narrow_module", register_compute_backends=[offer])))
    plan = planned(installed=installed, backend="narrow")
    assert (plan.settings["dtype"], plan.origins["dtype"]) == ("float32", "auto")
    assert plan.reasons["dtype"] == "on a CPU the compute backend narrow does not compute in bfloat16"
    assert planned(CUDA, installed, backend="narrow").settings["dtype"] == "bfloat16"  # of which it says nothing


@pytest.mark.parametrize(("kinds", "found"), [(("cpu",), "cpu"), (("cuda",), "cuda"), (("cpu", "cuda"), "cuda")])
def test_the_device_is_one_that_the_backend_runs_on(kinds, found):
    offer = ComputeBackendOffer(name="narrow", summary="n", framework="fake", devices=kinds, create=create)
    installed = manager(Point("narrow", plugin("narrow_module", register_compute_backends=[offer])))
    plan = planned(CUDA, installed, backend="narrow")
    assert plan.settings["device"] == found
    told = "found A Test GPU" if len(kinds) == 2 else "the compute backend narrow runs on nothing else"
    assert plan.reasons["device"] == told


@pytest.mark.parametrize(("takes", "between"), [(("json",), "json"), (("json", "lending"), None)])
def test_a_sampler_of_another_framework_is_lent_the_logits_where_the_backend_can(takes, between):
    offer = ComputeBackendOffer(name="lends", summary="l", framework="lending", exchanges=True, create=create)
    lends = plugin("lends_module", register_compute_backends=[offer], register_samplers=[sampler("theirs", takes)])
    plan = planned(installed=manager(Point("lends", lends)), plugins=("lends",))
    assert plan.facts["sampler.between"] == between
    told = "it draws from arrays of json: those of lending are lent to it, without a copy"
    assert plan.reasons.get("sampler") == (told if between else None)


def test_the_call_of_the_documentation_composes():
    plan = planned(block_size=16, num_gpu_blocks_override=20, max_num_batched_tokens=64, dtype="float32")
    assert (plan.settings["max_model_len"], plan.reasons["max_model_len"]) == (320, "what 20 pages of 16 tokens hold")
    assert (plan.settings["max_num_seqs"], plan.reasons["max_num_seqs"]) == (64, "a step of 64 tokens serves no more")
    assert chosen(plan)["scheduler"] == ("chunked", "auto")
    assert plan.reasons["scheduler"] == "prompts may be longer (320) than a step (64), so it must split them"
    assert plan.facts["kv.num_pages"] == 20


def test_a_model_that_has_to_be_fetched_is_not_refused_what_auto_can_choose(monkeypatch):
    monkeypatch.setattr("core.compose.composition.is_here", lambda model: False)
    plan = planned(max_num_batched_tokens=128, max_model_len=256)
    assert chosen(plan)["scheduler"] == ("chunked", "auto")


def test_a_scheduler_somebody_named_is_not_replaced():
    assert refused(max_num_batched_tokens=128, scheduler="whole")[0].startswith(
        "the scheduler whole computes a prompt in one step"
    )
    assert refused(max_num_batched_tokens=128, plugins="plain")[0].startswith(
        "the scheduler whole computes a prompt in one step"
    )
    assert refused(max_num_batched_tokens=128, enable_chunked_prefill=False)[0].startswith("the scheduler whole computes")


def test_of_several_splitting_schedulers_the_first_by_name_is_taken_and_said():
    also = SchedulerOffer(name="also", summary="s", splits_prompts=True, create=create)
    plan = planned(installed=manager(Point("z", plugin("m", register_schedulers=[also]))), max_num_batched_tokens=128)
    assert chosen(plan)["scheduler"] == ("also", "auto")
    assert plan.reasons["scheduler"].endswith(", the first by name of also, chunked")


def test_settings_of_the_scheduler_that_auto_chooses_are_in_place():
    plan = planned(max_num_batched_tokens=128, prefill_chunked={"most": 2})
    assert plan.sections["prefill_chunked"] == {"most": 2}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_model_len": 1024, "max_num_seqs": 2}, 2048),  # more there never are
        ({"max_model_len": 1024}, 8192),
        ({"max_model_len": 16, "max_num_seqs": 1}, 16),
        ({"max_model_len": 1024, "max_num_seqs": 2, "scheduler": "chunked"}, 2048),
        ({"max_num_seqs": 4096, "max_model_len": 64, "scheduler": "chunked"}, 8192),
    ],
)
def test_the_step_that_is_taken_breaks_no_bound(settings, expected):
    assert planned(**settings).settings["max_num_batched_tokens"] == expected


def test_pages_from_a_given_size_from_a_quarter_of_memory_and_for_one_request_at_least():
    given = planned(kv_cache_memory=0.5)
    page = given.facts["memory.kv_page_bytes"]
    assert given.facts["kv.num_pages"] == GIB // 2 // page
    tight = planned(DeviceProbe("c", 1, (), GIB, 40 << 20))
    assert tight.reasons["kv.num_pages"] == "a quarter of the free memory"
    assert tight.facts["kv.num_pages"] == (10 << 20) // page
    tighter = planned(DeviceProbe("c", 1, (), GIB, 3 << 20), max_num_seqs=2, max_num_batched_tokens=128)
    assert tighter.reasons["kv.num_pages"] == "one request at its longest"
    assert tighter.facts["kv.num_pages"] == tighter.facts["kv.pages_per_request"]


def test_a_length_nobody_gave_shrinks_to_what_fits():
    plan = planned(DeviceProbe("c", 1, (), GIB, 2_000_000), max_num_seqs=1)
    assert plan.reasons["max_model_len"] == "what fits the memory"
    assert 16 <= plan.settings["max_model_len"] < 2048
    assert plan.facts["memory.one_request_bytes"] <= 2_000_000


# --- models -------------------------------------------------------------------------------------------------------------


class OtherFamily(ModelFamily):
    architectures = ("Ernie4_5ForCausalLM",)

    def spec(self, config):
        from core.models.ernie45 import Ernie45

        return Ernie45().spec(config)

    def stored(self, weight, spec, names):
        raise NotImplementedError


def other_model():
    offer = ModelOffer(name="other", summary="o", architectures=OtherFamily.architectures, family=OtherFamily)
    return Point("other_model", plugin("m", register_models=[offer]))


def test_a_model_plugin_somebody_named_goes_before_the_default():
    assert chosen(planned(installed=manager(other_model())))["model"] == ("ernie45", "default")
    assert chosen(planned(installed=manager(other_model()), plugins="other_model"))["model"] == ("other", "LLM(plugins=...)")


def test_an_architecture_only_an_unchosen_plugin_knows():
    installed = manager(other_model(), without=["decoder_models"])
    import core.models.plugin

    formats = list(core.models.plugin.register_checkpoint_formats())
    assert all(isinstance(each, CheckpointFormatOffer) for each in formats)
    installed = manager(
        other_model(),
        Point("decoder_models", plugin("formats", register_checkpoint_formats=formats)),
        without=["decoder_models"],
    )
    assert refused(installed=installed) == [
        "the architecture Ernie4_5ForCausalLM needs the plugin other_model\n"
        "  set by: LLM(model=...)\n"
        "  remedy: add it: --plugins other_model"
    ]


def test_a_model_that_is_not_there_says_where_it_was_asked_for():
    assert refused(model="./nowhere") == [
        "there is no folder or file ./nowhere\n  set by: LLM(model=...)\n  remedy: check the path"
    ]


# --- the plan and its reports -------------------------------------------------------------------------------------------


def test_a_plan_survives_the_trip_to_a_worker():
    plan = planned(CUDA, port=81, max_num_batched_tokens=128)
    assert pickle.loads(pickle.dumps(plan)) == plan


def test_a_dumped_config_composes_to_the_same_plan(tmp_path):
    installed = manager(Point("quant_x", plugin("m", register_quantizers=[quantizer("x")])))
    plan = planned(
        installed=installed,
        plugins="quant_x",
        max_num_batched_tokens=128,
        openai_http={"port": 81, "tls": True, "allowed": ["a", 'b"\\\n\x7fé']},
    )
    file = tmp_path / "dump.toml"
    file.write_text(dump_text(plan), encoding="utf-8")
    assert tomllib.loads(file.read_text(encoding="utf-8"))["openai_http"]["allowed"] == ["a", 'b"\\\n\x7fé']
    again = compose(["--config", str(file)], env={}, probe=CPU, manager=installed)
    ignored = {"plugins"}
    assert {k: v for k, v in again.settings.items() if k not in ignored} == {
        k: v for k, v in plan.settings.items() if k not in ignored
    }
    assert (again.sections, again.plugins, again.spec) == (plan.sections, plan.plugins, plan.spec)
    assert [(c.kind, c.name) for c in again.choices] == [(c.kind, c.name) for c in plan.choices]
    assert dump_text(again) == dump_text(plan)


def test_explain_shows_every_choice_with_origin_and_provenance_and_every_reason():
    plan = planned(max_num_batched_tokens=128, installed=manager(Point("bad", ImportError("no kernels"))))
    lines = [" ".join(line.split()) for line in explain_text(plan).splitlines()]
    assert "sampler standard plugin sampler_standard, testdist 1.0 (fake_sampler) default" in lines
    assert "scheduler chunked plugin prefill_chunked, testdist 1.0 (fake_chunked) auto" in lines
    assert "why scheduler: prompts may be longer (2048) than a step (128), so it must split them" in lines
    assert "dtype bfloat16 auto: the format the models were trained in" in lines
    assert "max_num_batched_tokens 128 LLM(max_num_batched_tokens=...)" in lines
    assert any(line.startswith("plugin bad of testdist 1.0") for line in lines)
    for name in plan.reasons:
        assert plan.reasons[name] in explain_text(plan), name


def test_the_list_shows_state_provenance_offers_and_causes():
    installed = manager(
        Point("bad", ImportError("no kernels")),
        Point("twice", plugin("one"), "first"),
        Point("twice", plugin("two"), "second"),
        blocked=["prefill_chunked"],
    )
    rows = {line.split()[0]: line for line in list_text(installed).splitlines()}
    assert "broken" in rows["bad"]
    assert "ImportError: no kernels" in rows["bad"]
    assert "blocked" in rows["prefill_chunked"]
    assert "loaded   testdist 1.0 (fake_plain)" in rows["plain"]
    assert rows["plain"].endswith("scheduler: whole; cache policy: private; graph backend: eager")
    assert "first 1.0 (one) and second 1.0 (two)" in rows["twice"]
    assert "2 plugins are called 'twice'" in rows["dovetail:"]


def test_help_has_a_group_for_each_plugin_and_every_flag_it_shows_is_taken(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    text = help_text("python -m core.serve", manager())
    assert "plugin openai_http:\n  a door\n" in text
    assert "--openai-http-tls, --no-openai-http-tls" in text
    assert "--port PORT           port (default: 8000); the same as --openai-http-port" in text
    flags = {word.strip(",") for word in text.split() if word.startswith("--") and not word.startswith("--a-b")}
    first = first_pass(sorted(flags - {"--config", "--plugin-setting"}), {}, {})
    texts = [str(problem) for problem in attempt(first, manager(), CPU).problems]
    assert not [each for each in texts if "there is no flag" in each]


@pytest.mark.parametrize(("value", "policy"), [("1", "global"), ("0", "partitioned"), ("", "global")])
def test_a_variable_that_is_on_or_off_may_name_a_feature_for_each(value, policy):
    installed = manager(Point("kv_blocks", kv_blocks.plugin), without=("kv_blocks",))
    plan = compose(
        [], env={"ENABLE_V1_KVCACHE_SCHEDULER": value}, overrides={"model": "random:tiny"}, probe=CPU, manager=installed
    )
    assert chosen(plan)["block_policy"] == (policy, "$ENABLE_V1_KVCACHE_SCHEDULER" if value else "default")
    assert plan.facts["kv_blocks.prompt_pages"] == int(plan.facts["kv.num_pages"] * 0.75)


def test_a_share_for_prompts_under_one_pool_is_warned_about():
    installed = manager(Point("kv_blocks", kv_blocks.plugin), without=("kv_blocks",))
    (warning,) = planned(installed=installed, kv_cache_ratio=0.5).warnings
    assert str(warning) == (
        "--kv-cache-ratio 0.5 has no effect: under the global block policy prompts and outputs take pages from one pool\n"
        "  set by: LLM(kv_cache_ratio=...)\n"
        "  remedy: drop --kv-cache-ratio\n"
        "  remedy: divide the pages: --block-policy partitioned"
    )
