import pytest

from core.compose import compose
from core.compose.composition import attempt
from core.compose.core_rules import CORE_RULES
from core.compose.facts import CORE_FACTS, Facts
from core.compose.first_pass import first_pass
from core.compose.probe import DeviceProbe, Gpu
from core.compose.rules import facts_of, judge
from core.errors import UserError
from core.interfaces.rules import Condition, Fact, FactRef, Remedy, Rule
from core.offers import ComputeBackendOffer, FrontEndOffer, GraphBackendOffer, ParallelismOffer, RulesOffer
from tests.compose.fakes import CPU, CUDA, GIB, DoorSettings, Point, backend, create, manager, plugin, quantizer, sampler


def rule(*when, reason="it is {device.kind}", remedies=(), **more):
    return Rule(id="test-rule", when=when, reason=reason, remedies=remedies, **more)


@pytest.mark.parametrize(
    ("op", "fact", "value", "broken"),
    [
        ("==", 3, 3, True),
        ("!=", 3, 3, False),
        ("<", 3, 4, True),
        ("<=", 4, 4, True),
        (">", 4, 4, False),
        (">=", 4, 4, True),
        ("in", "a", ("a", "b"), True),
        ("not in", "a", ("a", "b"), False),
        ("contains", ("a", "b"), "a", True),
        ("divides", 64, 128, True),
        ("divides", 64, 100, False),
        ("not divides", 64, 100, True),
        ("==", None, None, True),
        ("!=", None, 3, False),
        ("!=", None, None, False),
        ("!=", 3, None, True),
        (">", None, 3, False),
        ("not in", None, ("a",), False),
    ],
)
def test_conditions(op, fact, value, broken):
    facts = Facts({"x": fact, "y": value}, [Fact("x", object, "x"), Fact("y", object, "y")])
    assert bool(judge(facts, [rule(Condition("x", op, value), reason="broken")])) is broken
    by_reference = bool(judge(facts, [rule(Condition("x", op, FactRef("y")), reason="broken")]))
    assert by_reference is (broken and fact is not None and value is not None)


def test_every_condition_must_hold_and_every_violation_is_returned():
    both = rule(Condition("device.kind", "==", "cpu"), Condition("device.count", "==", 0))
    half = rule(Condition("device.kind", "==", "cpu"), Condition("device.count", "==", 1))
    found = judge({"device.kind": "cpu", "device.count": 0}, [both, half, both])
    assert [violation.reason for violation in found] == ["it is cpu", "it is cpu"]


def test_a_violation_fills_in_values_and_keeps_only_remedies_that_apply():
    remedies = (
        Remedy("--max-model-len {model.max_positions}", {"max_model_len": FactRef("model.max_positions")}),
        Remedy(
            "--num-gpu-blocks-override {memory.fitting_pages}", {"num_gpu_blocks_override": FactRef("memory.fitting_pages")}
        ),
    )
    broken = rule(Condition("memory.weights_bytes", ">", 5), reason="{memory.weights_bytes} of {plugins}", remedies=remedies)
    values = {"memory.weights_bytes": 3 * GIB, "plugins": ("a", "b"), "model.max_positions": 128}
    [violation] = judge(Facts(values, origins={"model": "--model", "dtype": "auto"}), [broken])
    assert violation.reason == "3.00 GiB of a, b"
    assert violation.remedies == (Remedy("--max-model-len 128", {"max_model_len": 128}),)
    assert violation.origins == ("--model", "auto of dtype")


def test_a_rule_about_an_undeclared_fact_is_refused():
    with pytest.raises(UserError) as error:
        judge({}, [rule(Condition("device.knid", "==", "cpu"), reason="x")])
    assert str(error.value) == "rule test-rule is about 'device.knid', which is no fact; did you mean 'device.kind'?"


def test_a_rule_that_compares_what_cannot_be_compared_is_refused():
    with pytest.raises(UserError) as error:
        judge({"device.kind": "cpu"}, [rule(Condition("device.kind", "<", 3))])
    assert str(error.value).startswith("rule test-rule cannot judge device.kind < 3: device.kind is 'cpu' (")


def test_judging_changes_nothing():
    facts = {"device.kind": "cpu"}
    judge(facts, CORE_RULES)
    assert facts == {"device.kind": "cpu"}


def test_the_cores_rules_are_well_formed():
    names = {fact.name for fact in CORE_FACTS}
    assert len({each.id for each in CORE_RULES}) == len(CORE_RULES)
    for each in CORE_RULES:
        assert set(facts_of(each)) <= names
        assert each.remedies
        assert not each.reason.endswith(".")


# --- every core rule, broken on purpose; every remedy that is a setting cures it ------------------------------------------

SMALL = DeviceProbe("A Test CPU", 4, (), 16 * GIB, 1 << 20)
TIGHT = DeviceProbe("A Test CPU", 4, (), 16 * GIB, 8 << 20)


def second_backend():
    return Point("backend_two", plugin("two", register_compute_backends=[backend("two")]))


def single(hook, offer):
    return Point(f"another_{offer.kind}", plugin(f"another_{offer.kind}", **{hook: [offer]}))


def pair(name, framework="fake"):
    """Two ranks."""
    return ParallelismOffer(name=name, summary="p", create=create, ranks=lambda section: 2, frameworks=frozenset({framework}))


def paired(framework):
    return manager(Point("pair", plugin("pair_module", register_parallelisms=[pair("pair", framework)])))


def two_of(kind):
    make = {
        "sampler": lambda name: ("register_samplers", sampler(name)),
        "quantizer": lambda name: ("register_quantizers", quantizer(name)),
        "compute_backend": lambda name: ("register_compute_backends", backend(name)),
        "graph_backend": lambda name: (
            "register_graph_backends",
            GraphBackendOffer(name=name, summary="g", create=create),
        ),
        "front_end": lambda name: ("register_front_ends", FrontEndOffer(name=name, summary="f", create=create)),
        "parallelism": lambda name: ("register_parallelisms", pair(name)),
    }[kind]
    points = []
    for name in ("first", "second"):
        hook, offer = make(name)
        points.append(Point(f"plugin_{name}", plugin(f"module_{name}", **{hook: [offer]})))
    return manager(*points)


def narrow_backend():
    offer = ComputeBackendOffer(name="narrow", summary="n", framework="fake", dtypes={"cpu": ("float32",)}, create=create)
    return Point("narrow", plugin("narrow_module", register_compute_backends=[offer]))


def backend_of_cpus():
    offer = ComputeBackendOffer(name="of_cpus", summary="n", framework="fake", devices=("cpu",), create=create)
    return Point("of_cpus", plugin("of_cpus_module", register_compute_backends=[offer]))


def picky_sampler():
    return Point("picky", plugin("picky_module", register_samplers=[sampler("picky", frameworks=("paddle",))]))


def rounding():
    offer = quantizer("rounding", rounds_activations=True, settings=DoorSettings, head="tls")
    return Point("rounding", plugin("rounding_module", register_quantizers=[offer]))


def picky_graph():
    offer = GraphBackendOffer(name="picky", summary="p", create=create, frameworks=frozenset({"paddle"}))
    return Point("picky", plugin("picky_module", register_graph_backends=[offer]))


PAIR = {"plugins": "plugin_first,plugin_second"}
CASES = [
    ("two-samplers", PAIR, CPU, lambda: two_of("sampler"), 1),
    ("two-quantizers", PAIR, CPU, lambda: two_of("quantizer"), 1),
    ("two-compute-backends", PAIR, CPU, lambda: two_of("compute_backend"), 1),
    ("two-graph-backends", PAIR, CPU, lambda: two_of("graph_backend"), 1),
    ("two-front-ends", PAIR, CPU, lambda: two_of("front_end"), 1),
    ("two-parallelisms", PAIR, CPU, lambda: two_of("parallelism"), 1),
    ("two-schedulers", {"plugins": "plain,prefill_chunked"}, CPU, manager, 1),
    ("head-of-a-format-that-rounds-activations", {"head_quantization": "rounding"}, CPU, lambda: manager(rounding()), 2),
    ("plugin-named-twice", {"plugins": "plain,plain"}, CPU, manager, 1),
    (
        "section-of-an-unloaded-plugin",
        {"another": {"port": 3}},
        CPU,
        lambda: manager(
            Point(
                "another",
                plugin("m", register_samplers=[sampler("another", settings=DoorSettings)]),
            )
        ),
        1,
    ),
    ("max-model-len-beyond-positions", {"max_model_len": 4096}, CPU, manager, 1),
    ("step-smaller-than-batch", {"max_num_seqs": 100, "max_num_batched_tokens": 64, "max_model_len": 64}, CPU, manager, 2),
    (
        "step-larger-than-everything",
        {"max_num_seqs": 2, "max_num_batched_tokens": 4096, "max_model_len": 1024},
        CPU,
        manager,
        1,
    ),
    ("step-shorter-than-a-prompt", {"max_num_batched_tokens": 128, "scheduler": "whole"}, CPU, manager, 3),
    ("no-cuda-device", {"device": "cuda"}, CPU, manager, 1),
    (
        "framework-missing",
        {"plugins": "backend_two"},
        CPU,
        lambda: manager(
            Point("backend_two", plugin("m", register_compute_backends=[backend("two", requires=("no_such_module_x",))]))
        ),
        0,
    ),
    ("sampler-of-another-framework", {"sampler": "picky"}, CPU, lambda: manager(picky_sampler()), 1),
    ("device-the-backend-lacks", {"backend": "of_cpus", "device": "cuda"}, CUDA, lambda: manager(backend_of_cpus()), 1),
    ("number-format-the-backend-lacks", {"backend": "narrow", "dtype": "float16"}, CPU, lambda: manager(narrow_backend()), 1),
    ("graph-of-another-framework", {"graph": "picky"}, CPU, lambda: manager(picky_graph()), 1),
    ("ranks-of-another-framework", {"parallelism": "pair"}, CPU, lambda: paired("paddle"), 1),
    ("backend-that-does-not-split", {"parallelism": "pair"}, CPU, lambda: paired("fake"), 1),
    ("model-larger-than-memory", {"dtype": "float32", "max_num_seqs": 1}, DeviceProbe("c", 1, (), GIB, 370_000), manager, 1),
    (
        "request-larger-than-memory",
        {"max_model_len": 2048, "max_num_seqs": 1},
        DeviceProbe("c", 1, (), GIB, 2_000_000),
        manager,
        1,
    ),
    (
        "cache-larger-than-memory",
        {"num_gpu_blocks_override": 10_000, "max_model_len": 64, "max_num_seqs": 4},
        DeviceProbe("c", 1, (), GIB, 64 << 20),
        manager,
        1,
    ),
    ("cache-sized-twice", {"num_gpu_blocks_override": 64, "kv_cache_memory": 0.5}, CPU, manager, 2),
    ("cpu-cache-on-cuda", {"kv_cache_memory": 0.5}, CUDA, manager, 1),
    ("cache-smaller-than-a-request", {"num_gpu_blocks_override": 3, "max_model_len": 256}, CPU, manager, 2),
]


@pytest.mark.parametrize(
    ("distribution", "package"), [("dovetail-serve", "dovetail-serve[fake]"), ("dovetail-backend-two", "dovetail-backend-two")]
)
def test_a_missing_framework_comes_with_its_backend(distribution, package):
    offered = plugin("m", register_compute_backends=[backend("two", requires=("no_such_module_x",))])
    found = attempted({"plugins": "backend_two"}, CPU, manager(Point("backend_two", offered, distribution)))
    [missing] = [each for each in found.violations if each.id == "framework-missing"]
    assert [each.text for each in missing.remedies] == [f"pip install '{package}'", "choose another compute backend"]


def attempted(settings, probe, installed):
    first = first_pass([], {}, {"model": "random:tiny", **settings})
    return attempt(first, installed, probe)


def ids(composition):
    return [violation.id for violation in composition.violations]


def cured(settings, change):
    after = dict(settings)
    for key, value in change.items():
        names = str(after.get("plugins") or "").split(",") if after.get("plugins") else []
        if key == "plugins+":
            after["plugins"] = ",".join([*names, *value])
        elif key == "plugins-":
            after["plugins"] = ",".join(name for name in names if name not in value)
        elif key == "plugins":
            after["plugins"] = ",".join(value)
        else:
            after[key] = value
    return after


@pytest.mark.parametrize(("rule_id", "settings", "probe", "installed", "cures"), CASES, ids=[case[0] for case in CASES])
def test_each_rule_is_broken_by_its_case_and_each_remedy_cures_it(rule_id, settings, probe, installed, cures):
    composition = attempted(settings, probe, installed())
    assert rule_id in ids(composition)
    assert composition.plan is None
    [violation] = [each for each in composition.violations if each.id == rule_id]
    changes = [remedy.set for remedy in violation.remedies if remedy.set]
    assert len(changes) == cures
    for change in changes:
        after = attempted(cured(settings, change), probe, installed())
        assert rule_id not in ids(after), change


@pytest.mark.parametrize(
    ("flags", "remedy"),
    [
        (["--kv-cache-memory", "100"], "--kv-cache-memory 10.78"),
        (["--num-gpu-blocks-override", "9999999"], "--num-gpu-blocks-override 353478"),
    ],
)
def test_a_smaller_cache_is_advised_in_the_terms_of_what_was_asked_and_leaves_a_tenth_free(flags, remedy):
    def planned(said):
        return compose(["--model", "random:tiny", *said], env={}, probe=CPU, manager=manager())

    with pytest.raises(UserError) as error:
        planned(flags)
    (problem,) = error.value.problems
    assert (problem.where.split(",")[0], problem.remedies) == (flags[0], (remedy,))
    taken = planned(remedy.split()).facts["memory.total_bytes"] / CPU.free_bytes
    assert taken == pytest.approx(0.9, abs=0.001)


def test_a_cache_that_barely_fits_is_advised_for_one_request():
    small = DeviceProbe("A Test CPU", 4, (), GIB, 6 << 20)
    asked = {"kv_cache_memory": 1.0, "max_model_len": 2048, "max_num_seqs": 1, "max_num_batched_tokens": 2048}
    [violation] = attempted(asked, small, manager()).violations
    after = attempted(cured(asked, violation.remedies[0].set), small, manager())
    assert (after.problems, after.plan.facts["kv.num_pages"]) == ([], after.plan.facts["kv.pages_per_request"])


def test_there_is_a_case_for_every_core_rule():
    without_case = {each.id for each in CORE_RULES} - {case[0] for case in CASES}
    # These are cut from the same data as the other kinds.
    kinds = ("cache-policies", "block-policies", "draft-proposers", "grammar-backends", "tool-parsers", "reasoning-parsers")
    of_packed_models = "head-packed-otherwise"  # tests/compose/test_head.py
    assert without_case == {*(f"two-{kind}" for kind in (*kinds, "pages")), of_packed_models}


def test_a_sound_composition_breaks_no_rule():
    for probe in (CPU, CUDA):
        composition = attempted({}, probe, manager())
        assert (composition.problems, composition.violations) == ([], [])


def test_on_cuda_the_memory_of_the_device_counts():
    tiny = DeviceProbe("c", 1, (), GIB, GIB, (Gpu("g", 8.0, 1 << 18, 1 << 18),))
    assert "model-larger-than-memory" in ids(attempted({"device": "cuda"}, tiny, manager()))


def test_several_violations_come_together_with_their_origins(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('model = "random:tiny"\nmax_model_len = 4096\n[prefill_chunked]\nmost = 2\n')
    with pytest.raises(UserError) as error:
        compose(
            ["--config", str(file), "--device", "cuda"],
            env={"DOVETAIL_PLUGINS": "plain,plain"},
            probe=CPU,
            manager=manager(),
        )
    assert str(error.value) == (
        "named more than once: plain\n"
        "  set by: $DOVETAIL_PLUGINS\n"
        "  remedy: name each plugin once: --plugins plain\n"
        "settings are given for prefill_chunked, which is installed but not chosen\n"
        f"  set by: {file}:4\n"
        "  remedy: add it: --plugins prefill_chunked\n"
        "  remedy: drop these settings\n"
        "max_model_len 4096 is beyond the 2048 positions of random:tiny\n"
        f"  set by: {file}:2, {file}:1\n"
        "  remedy: --max-model-len 2048\n"
        "device is cuda, and this machine shows no CUDA device\n"
        "  set by: --device\n"
        "  remedy: --device cpu\n"
        "  remedy: check the driver (nvidia-smi) and CUDA_VISIBLE_DEVICES"
    )


# --- rules and facts of plugins -----------------------------------------------------------------------------------------


def house(**more):
    offer = RulesOffer(name="house", summary="h", **more)
    return manager(Point("house", plugin("house_module", register_rules=[offer])))


def test_a_plugins_rules_and_facts_apply_when_it_is_chosen():
    much = Rule(
        id="house-layers",
        when=(Condition("house.score", ">", 3),),
        reason="a score of {house.score} is too much",
        remedies=(Remedy("choose another model"),),
    )
    installed = house(
        rules=(much,),
        facts=(Fact("house.score", int, "layers doubled"),),
        derive=lambda facts: {"house.score": 2 * (facts["model.layers"] or 0)},
    )
    assert attempted({}, CPU, installed).problems == []
    [problem] = attempted({"plugins": "house"}, CPU, installed).problems
    assert str(problem) == "a score of 4 is too much\n  remedy: choose another model"


def test_a_warning_refuses_nothing_and_stands_in_the_plan():
    mild = rule(Condition("device.kind", "==", "cpu"), reason="slow on {device.kind}", severity="warning")
    plan = attempted({"plugins": "house"}, CPU, house(rules=(mild,))).plan
    assert [str(warning) for warning in plan.warnings] == ["slow on cpu\n  set by: auto of device"]


def test_a_plugins_wrong_rules_and_facts_are_its_mistakes():
    installed = house(
        rules=(rule(Condition("modle.layers", ">", 3), reason="x"),),
        derive=lambda facts: {"house.score": 1},
    )
    assert [str(problem) for problem in attempted({"plugins": "house"}, CPU, installed).problems] == [
        "plugin house of testdist 1.0 (house_module) computes facts it did not declare: house.score\n"
        "  remedy: mend or reinstall testdist\n"
        "  remedy: leave the plugin out: --without house",
        "plugin house of testdist 1.0 (house_module): rule test-rule is about 'modle.layers', which is no fact; "
        "did you mean 'model.layers'?",
    ]


def test_facts_that_cannot_be_computed_are_the_plugins_mistake():
    [problem] = attempted({"plugins": "house"}, CPU, house(derive=lambda facts: 1 / 0)).problems
    assert problem.what.startswith(
        "derive of the rules 'house' of plugin house of testdist 1.0 (house_module) raised ZeroDivisionError: division by zero"
    )


def test_a_rule_may_speak_of_the_settings_of_any_installed_plugin():
    open_door = rule(Condition("settings.openai_http.host", "==", "0.0.0.0"), reason="open to {settings.openai_http.host}")
    composition = attempted(
        {"plugins": "house", "host": None, "openai_http": {"host": "0.0.0.0"}}, CPU, house(rules=(open_door,))
    )
    assert [str(problem) for problem in composition.problems] == ["open to 0.0.0.0\n  set by: LLM(openai_http=...)"]


def test_facts_have_their_declared_types():
    for probe in (CPU, CUDA):
        composition = attempted({}, probe, manager())
        for name, fact in composition.facts.schema.items():
            value = composition.facts[name]
            assert value is None or isinstance(value, fact.type), f"{name} = {value!r} is no {fact.type.__name__}"
