"""Who packs the head: one setting, with one meaning whatever packs the layers, shown, repeated, and refused where it fails."""

import json

import pytest

from core.compose import compose
from core.compose.composition import attempt
from core.compose.first_pass import first_pass
from core.compose.packed import compose_saving
from core.compose.report import dump_text, explain_text
from core.errors import UserError
from core.models.packed import Packing
from core.models.random_format import SHAPES
from core.plugin_manager import PluginManager
from tests.compose.fakes import CPU, Point, manager, plugin, quantizer

INSTALLED = PluginManager.discover()
WINT8, WINT4 = ("--quantization", "wint8"), ("--quantization", "wint4", "--quant-wint4-group-size", "32")
FP8 = ("--quantization", "fp8", "--fp8-emulate")
MB = 1e6


def planned(*argv, env=None, installed=INSTALLED, model="random:tiny"):
    return compose(["--model", model, *argv], env=env or {}, probe=CPU, manager=installed)


def refused(*argv, env=None, installed=INSTALLED, model="random:tiny"):
    with pytest.raises(UserError) as error:
        planned(*argv, env=env, installed=installed, model=model)
    return [str(problem) for problem in error.value.problems]


def head_of(plan):
    """Who packs it, and what the plugins in the plan say themselves."""
    choice = plan.chosen("head_quantizer")
    assert plan.settings["head_quantization"] == ("none" if choice is None else choice.name)
    return choice and choice.name, {name: section["head"] for name, section in plan.sections.items() if "head" in section}


@pytest.mark.parametrize(
    ("argv", "head", "own"),
    [
        ((), None, {}),
        (WINT8, "wint8", {"quant_wint8": True}),
        (WINT4, "wint4", {"quant_wint4": True}),
        (FP8, None, {"quant_fp8": False}),
        ((*WINT8, "--no-quant-wint8-head"), None, {"quant_wint8": False}),
        ((*FP8, "--quant-fp8-head"), "block_wise_fp8", {"quant_fp8": True}),
        (("--head-quantization", "wint8"), "wint8", {"quant_wint8": True}),
        ((*FP8, "--head-quantization", "wint8"), "wint8", {"quant_fp8": False, "quant_wint8": True}),
        ((*FP8, "--head-quantization", "block_wise_fp8"), "block_wise_fp8", {"quant_fp8": True}),
        ((*WINT4, "--head-quantization", "wint8"), "wint8", {"quant_wint4": False, "quant_wint8": True}),
        ((*WINT4, "--head-quantization", "none"), None, {"quant_wint4": False}),
        ((*WINT8, "--head-quantization", "wint8"), "wint8", {"quant_wint8": True}),
        (("--head-quantization", "wint4"), "wint4", {"quant_wint4": True}),  # though groups of 128 divide no layer here
        (("--plugins", "quant_wint8"), "wint8", {"quant_wint8": True}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_one_setting_says_who_packs_the_head_and_the_plugins_own_follow(argv, head, own, tmp_path):
    plan = planned(*argv)
    assert head_of(plan) == (head, own)
    assert plan.warnings == ()
    (tmp_path / "again.toml").write_text(dump_text(plan))
    again = compose(["--config", str(tmp_path / "again.toml")], env={}, probe=CPU, manager=INSTALLED)
    assert head_of(again) == (head, own)
    assert again.facts["memory.weights_bytes"] == plan.facts["memory.weights_bytes"]


def test_it_is_shown_with_its_reason():
    shown = explain_text(planned(*WINT8))
    assert "  why head_quantization: wint8 packs it with the layers\n" in shown
    for argv, row in (
        ((), ("none", "the head keeps the number format", "default")),
        (("--head-quantization", "wint8"), ("wint8", "plugin quant_wint8,", "--head-quantization")),
        ((*WINT8, "--head-quantization", "none"), ("none", "the head keeps the number format", "--head-quantization")),
    ):
        [line] = [line for line in explain_text(planned(*argv)).splitlines() if line.startswith("  head quantizer ")]
        assert all(part in line for part in row)
        assert line.endswith(row[-1])


@pytest.mark.parametrize(
    ("model", "argv", "more"),
    [
        ("random:ernie-4.5-0.3b", (), 106),  # tied: a copy beside the table
        ("random:ernie-4.5-0.3b", FP8, 106),
        ("random:llama-tiny", (), -512 * 64 * (16 - 8 - 32 / 64) / 8 / MB),  # of its own: half of it goes
    ],
)
def test_memory_is_told_before_anything_is_loaded(model, argv, more):
    without, packed = (
        planned(*argv, *head, "--max-model-len", "64", model=model).facts["memory.weights_bytes"]
        for head in ((), ("--head-quantization", "wint8"))
    )
    assert (packed - without) / MB == pytest.approx(more, rel=0.01)


@pytest.mark.parametrize(
    ("argv", "env", "own", "wanted"),
    [
        ((*WINT8, "--quant-wint8-head", "--head-quantization", "none"), {}, "quant_wint8.head = True", "none"),
        ((*FP8, "--quant-fp8-head", "--head-quantization", "wint8"), {}, "quant_fp8.head = True", "wint8"),
        ((*WINT8, "--no-quant-wint8-head"), {"DOVETAIL_HEAD_QUANTIZATION": "wint8"}, "quant_wint8.head = False", "wint8"),
    ],
)
def test_two_that_contradict_each_other_are_refused(argv, env, own, wanted):
    [problem] = refused(*argv, env=env)
    flag, place = argv[2 if env or "--fp8-emulate" not in argv else 3], "--head-quantization"
    place = "$DOVETAIL_HEAD_QUANTIZATION" if env else place
    assert problem == (
        f"{own} and head_quantization = {wanted!r} contradict each other about the head\n"
        f"  set by: {flag}, {place}\n  remedy: drop {flag}\n  remedy: drop {place}"
    )


def test_a_flag_goes_before_what_the_environment_says_of_one_plugin():
    plan = planned(*WINT8, "--head-quantization", "none", env={"DOVETAIL_QUANT_WINT8__HEAD": "true"})
    assert head_of(plan) == (None, {"quant_wint8": False})
    assert plan.origins["quant_wint8.head"] == "--head-quantization"


def test_what_cannot_pack_a_head_is_refused_with_ways_out():
    assert refused("--head-quantization", "int8") == [
        "no installed plugin offers the head quantizer 'int8'; did you mean 'wint8'?\n"
        "  set by: --head-quantization\n"
        "  remedy: one of: block_wise_fp8, wint4, wint8"
    ]
    assert refused(*WINT8, "--head-quantization", "block_wise_fp8") == [
        "block_wise_fp8 rounds activations as well as weights: it packs no head beside others' layers\n"
        "  set by: --head-quantization, --quantization\n"
        "  remedy: --head-quantization auto\n"
        "  remedy: --quantization block_wise_fp8"
    ]


def test_a_quantizer_without_a_setting_for_it():
    """Its own head can be left alone, and packed by another; it packs nobody else's."""
    both = quantizer("both", stored_bits=lambda section, role, width: 8.0)
    layers = quantizer("layers", bits=8.0)
    installed = manager(
        Point("quant_both", plugin("both_module", register_quantizers=[both])),
        Point("quant_layers", plugin("layers_module", register_quantizers=[layers])),
    )

    def head(*argv):
        plan = planned(*argv, installed=installed)
        return plan.settings["head_quantization"], plan.facts["memory.weights_bytes"]

    (own, packed), (none, unpacked) = head("--quantization", "both"), head("--quantization", "layers")
    assert (own, none) == ("both", "none")
    assert head("--quantization", "both", "--head-quantization", "none") == ("none", unpacked)
    assert head("--quantization", "both", "--head-quantization", "both") == ("both", packed)
    assert packed == unpacked + SHAPES["tiny"]["vocab_size"] * SHAPES["tiny"]["hidden_size"]
    assert refused("--quantization", "layers", "--head-quantization", "both", installed=installed) == [
        "no installed plugin offers the head quantizer 'both'\n"
        "  set by: --head-quantization\n"
        "  remedy: install a plugin that offers a head quantizer"
    ]


def test_a_setting_that_is_none_breaks_the_plugin():
    wrong = manager(Point("quant_wrong", plugin("wrong", register_quantizers=[quantizer("wrong", head="heads")])))
    found = wrong.get("quant_wrong")
    assert (found.state, found.error) == ("broken", "'heads', which says whether 'wrong' packs the head, is no setting of it")


# --- checkpoints that are packed --------------------------------------------------------------------------------------

INT8, LAYERS = "int8_row", ("qkv", "o", "gate_up", "down")
OWN = Packing("wint8", "quant_wint8", {"head": True}, dict.fromkeys((*LAYERS, "head"), INT8))
BARE = Packing("wint8", "quant_wint8", {"head": False}, dict.fromkeys(LAYERS, INT8))
ALONE = Packing("wint8", "quant_wint8", {"head": True}, {"head": INT8})
OTHER = Packing(
    "wint4",
    "quant_wint4",
    {"group_size": 32, "search": False, "pad": False, "head": False},
    dict.fromkeys(LAYERS, "int4_group") | {"head": INT8},
    head=Packing("wint8", "quant_wint8", {"head": True}, {}),
)


@pytest.fixture
def stored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(packing):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "model.safetensors").write_bytes(b"")
        config = SHAPES["tiny"] | {"quantization_config": packing.as_config()}
        (tmp_path / "mine" / "config.json").write_text(json.dumps(config))

    return write


@pytest.mark.parametrize(
    ("packing", "argv", "layers", "head"),
    [
        (OWN, (), "wint8", "wint8"),
        (OWN, ("--head-quantization", "wint8"), "wint8", "wint8"),
        (BARE, (), "wint8", None),
        (BARE, ("--head-quantization", "none"), "wint8", None),
        (BARE, ("--head-quantization", "wint8"), "wint8", "wint8"),  # packed while it is loaded
        (BARE, ("--head-quantization", "wint4"), "wint8", "wint4"),
        (ALONE, (), None, "wint8"),
        (ALONE, WINT4, "wint4", "wint8"),
        (OTHER, (), "wint4", "wint8"),
    ],
)
def test_the_checkpoint_says_who_packed_what_and_the_rest_may_be_packed_at_load(stored, packing, argv, layers, head):
    stored(packing)
    plan = planned(*argv, model="mine")
    choice = plan.chosen("quantizer")
    assert (choice and choice.name, plan.settings["head_quantization"]) == (layers, head or "none")
    assert plan.warnings == ()
    assert plan.facts["model.head_packed_by"] == (None if packing is BARE else "wint8")
    if packing is BARE:
        assert plan.sections["quant_wint8"]["head"] is False, "of its layers, as config.json says it"


@pytest.mark.parametrize("packing", [OWN, ALONE, OTHER])
@pytest.mark.parametrize("asked", ["none", "wint4"])
def test_a_head_that_is_packed_cannot_be_had_otherwise(stored, packing, asked):
    stored(packing)
    assert refused("--head-quantization", asked, model="mine") == [
        "the head of mine is packed already, by wint8\n"
        "  set by: --model, --head-quantization\n"
        "  remedy: --head-quantization auto\n"
        "  remedy: choose the model that was packed, and pack it otherwise"
    ]
    assert planned("--head-quantization", "auto", model="mine").settings["head_quantization"] == "wint8"


def test_a_packer_of_the_head_that_is_not_installed_is_named(stored):
    stored(OTHER)
    first = first_pass(["--model", "mine", "--without", "quant_wint8"], env={})
    [problem] = attempt(first, first.discover(), CPU).problems
    assert problem.what == "the weights of mine are packed as wint8 by the plugin quant_wint8, which is left out by --without"


def test_a_head_alone_can_be_saved():
    plan = compose_saving(["--model", "random:tiny", "--head-quantization", "wint8"], env={}, manager=INSTALLED)
    assert {choice.kind: choice.name for choice in plan.choices} == {
        "head_quantizer": "wint8",
        "model": "ernie45",
        "checkpoint_format": "random",
    }
    with pytest.raises(UserError, match="it packs no head beside others' layers"):
        compose_saving(["--model", "random:tiny", "--head-quantization", "block_wise_fp8"], env={}, manager=INSTALLED)
