"""A checkpoint that was saved packed beats what was said; saving one needs no machine that could serve it."""

import json
import tomllib

import pytest
from pydantic import Field

from core.compose import compose
from core.compose.packed import compose_saving, packing_of
from core.compose.report import dump_text, explain_text
from core.errors import UserError
from core.interfaces.rules import Condition, Remedy, Rule
from core.models.packed import Packing, layouts
from core.models.random_format import SHAPES
from core.offers import QuantizerOffer, Section
from core.plugin_manager import PluginManager
from core.testing.fakes import RowInt8
from tests.compose.fakes import CPU, Point, create, manager, plugin, quantizer

LAYOUTS = {"qkv": "nibbles"}


class NibbleSettings(Section, frozen=True):
    width: int = Field(4, ge=1, description="bits")
    steps: tuple[int, ...] = Field((1, 2), description="steps")
    exact: bool = Field(False, description="multiply exactly")


RULES = (
    Rule(
        id="nibbles-need-cuda",
        when=(Condition("device.kind", "!=", "cuda"), Condition("settings.quant_nibbles.exact", "==", False)),
        reason="nibbles are multiplied on {device.kind}",
        remedies=(Remedy("--quant-nibbles-exact", {"quant_nibbles.exact": True}),),
    ),
    Rule(
        id="nibbles-are-narrow",
        when=(Condition("settings.quant_nibbles.width", ">", 4),),
        reason="{settings.quant_nibbles.width} bits are no nibble",
        remedies=(Remedy("--quant-nibbles-width 4", {"quant_nibbles.width": 4}),),
    ),
)


def nibbles(rules=()):
    return QuantizerOffer(
        name="nibbles",
        summary="nibbles",
        bits=4.0,
        create=create,
        settings=NibbleSettings,
        at_load=frozenset({"exact"}),
        rules=rules,
    )


def both(*, rules=(), without=(), blocked=()):
    points = [
        Point("quant_nibbles", plugin("nibbles", register_quantizers=[nibbles(rules)])),
        Point("quant_bytes", plugin("bytes", register_quantizers=[quantizer("bytes")])),
    ]
    return manager(*(point for point in points if point.name not in without), blocked=blocked)


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """A folder that says it is packed; composing looks at nothing else. In the current folder, for a short name."""
    monkeypatch.chdir(tmp_path)
    return write(tmp_path / "mine", Packing("nibbles", "quant_nibbles", {"width": 3, "steps": [5]}, LAYOUTS).as_config())


def write(folder, quantization_config):
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"")
    config = SHAPES["tiny"] | {"quantization_config": quantization_config}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def planned(*argv, installed=None):
    return compose(["--model", "mine", *argv], env={}, probe=CPU, manager=installed or both())


def refused(*argv, installed=None):
    with pytest.raises(UserError) as error:
        planned(*argv, installed=installed)
    return [str(problem) for problem in error.value.problems]


def test_the_checkpoint_chooses_its_quantizer_and_its_settings(packed):
    plan = planned()
    choice = plan.chosen("quantizer")
    assert (choice.name, choice.plugin, choice.origin) == ("nibbles", "quant_nibbles", "config.json of mine")
    assert plan.settings["quantization"] == "nibbles"
    assert plan.sections["quant_nibbles"] == {"width": 3, "steps": (5,), "exact": False}
    assert plan.origins["quant_nibbles.width"] == "config.json of mine"
    assert plan.origins["quant_nibbles.exact"] == "default"
    assert plan.facts["settings.quant_nibbles.width"] == 3
    assert plan.facts["quantizer.bits"] == 4.0
    assert plan.warnings == ()
    shown = explain_text(plan)
    assert "nibbles      plugin quant_nibbles, testdist 1.0 (nibbles)" in shown
    assert shown.count("config.json of mine") == 3


def test_its_rules_apply(packed):
    assert refused(installed=both(rules=RULES)) == [
        "nibbles are multiplied on cpu\n"
        "  set by: auto of device, default of quant_nibbles.exact\n"
        "  remedy: --quant-nibbles-exact"
    ]
    assert planned("--quant-nibbles-exact", installed=both(rules=RULES)).warnings == ()


@pytest.mark.parametrize(
    "argv", [(), ("--quantization", "nibbles"), ("--plugins", "quant_nibbles"), ("--quantization", "none")]
)
def test_who_says_the_same_is_not_warned(packed, argv):
    plan = planned(*argv)
    assert plan.warnings == ()
    assert plan.chosen("quantizer").name == "nibbles"


def test_a_flag_that_says_otherwise_loses_and_is_told(packed):
    plan = planned("--quantization", "bytes")
    assert plan.settings["quantization"] == "nibbles"
    assert [str(warning) for warning in plan.warnings] == [
        "quantization bytes has no effect: mine is packed as nibbles already\n"
        "  set by: --quantization\n"
        "  remedy: drop it\n"
        "  remedy: choose the model that was packed, and pack it otherwise"
    ]


def test_the_rules_of_a_quantizer_that_loses_do_not_apply(packed):
    write(packed, Packing("bytes", "quant_bytes", {}, LAYOUTS).as_config())
    plan = planned("--quantization", "nibbles", installed=both(rules=RULES))
    assert plan.chosen("quantizer").name == "bytes"
    [warning] = plan.warnings
    assert warning.what == "quantization nibbles has no effect: mine is packed as bytes already"


def test_settings_that_say_otherwise_lose_too_but_for_those_of_loading(packed):
    plan = planned("--quant-nibbles-width", "2", "--quant-nibbles-steps", "5", "--quant-nibbles-exact")
    assert plan.sections["quant_nibbles"] == {"width": 3, "steps": (5,), "exact": True}
    assert plan.origins["quant_nibbles.exact"] == "--quant-nibbles-exact"
    assert [str(warning) for warning in plan.warnings] == [
        "quant_nibbles.width = 2 has no effect: mine is packed with 3 already\n"
        "  set by: --quant-nibbles-width\n"
        "  remedy: drop it\n"
        "  remedy: choose the model that was packed, and pack it otherwise"
    ]


def test_what_is_dumped_composes_to_the_same(packed, tmp_path):
    plan = planned("--quantization", "bytes")
    file = tmp_path / "again.toml"
    file.write_text(dump_text(plan))
    assert tomllib.loads(file.read_text())["quantization"] == "nibbles"
    again = compose(["--config", str(file)], env={}, probe=CPU, manager=both())
    assert again.warnings == ()
    assert again.sections["quant_nibbles"] == plan.sections["quant_nibbles"]


def test_a_plugin_that_is_not_there_is_told(packed):
    what = "the weights of mine are packed as nibbles by the plugin quant_nibbles, which"
    last = "  remedy: choose the checkpoint that was packed"
    assert refused(installed=both(without=["quant_nibbles"])) == [
        f"{what} is not installed\n  set by: --model\n  remedy: install quant_nibbles\n{last}"
    ]
    assert refused("--without", "quant_nibbles", installed=both(blocked=["quant_nibbles"])) == [
        f"{what} is left out by --without\n  set by: --model\n  remedy: drop quant_nibbles from --without\n{last}"
    ]
    broken = manager(Point("quant_nibbles", ImportError("no module named numbers")))
    [problem] = refused(installed=broken)
    assert problem.startswith(f"{what} is broken: ImportError: no module named numbers (")
    assert problem.endswith(f")\n  set by: --model\n  remedy: mend or replace quant_nibbles\n{last}")
    other = manager(Point("quant_nibbles", plugin("other", register_quantizers=[quantizer("halves")])))
    assert refused(installed=other) == [
        f"{what} offers no such quantizer\n  set by: --model\n"
        f"  remedy: install the version of quant_nibbles that packed it\n{last}"
    ]


def test_settings_that_the_plugin_does_not_take_are_told(packed):
    write(packed, Packing("nibbles", "quant_nibbles", {"width": 0}, LAYOUTS).as_config())
    assert refused() == [
        "quant_nibbles.width = 0: input should be greater than or equal to 1\n  set by: config.json of mine",
    ]


def test_what_others_packed_is_refused_whatever_is_asked(packed):
    write(packed, {"quant_method": "gptq", "bits": 4})
    for argv in ((), ("--quantization", "bytes"), ("--quantization", "none")):
        assert refused(*argv) == [
            "the weights of mine are packed by gptq (4 bits), which cannot be read here\n"
            "  set by: quantization_config in the model's config\n"
            "  remedy: choose the checkpoint that was packed, in bfloat16 or float16, and pack it here: "
            "--quantization bytes|nibbles"
        ]


# --- saving -------------------------------------------------------------------------------------------------------------


def saving(*argv, installed=None, env=None):
    return compose_saving(["--model", "random:tiny", *argv], env=env or {}, manager=installed or both())


def not_saved(*argv, installed=None):
    with pytest.raises(UserError) as error:
        saving(*argv, installed=installed)
    return [str(problem) for problem in error.value.problems]


def test_a_plan_to_save_has_the_model_and_the_quantizer():
    plan = saving("--quantization", "nibbles", "--quant-nibbles-width", "3", env={"DOVETAIL_OPENAI_HTTP__PORT": "1"})
    assert {choice.kind: choice.name for choice in plan.choices} == {
        "quantizer": "nibbles",
        "model": "ernie45",
        "checkpoint_format": "random",
    }
    assert plan.sections == {"quant_nibbles": {"width": 3, "steps": (1, 2), "exact": False}}
    assert saving("--plugins", "quant_nibbles").chosen("quantizer").name == "nibbles"


def test_what_config_json_will_say():
    plan = saving("--quantization", "nibbles", "--quant-nibbles-width", "3", "--quant-nibbles-exact")
    packing = packing_of(plan, RowInt8(), both())
    assert packing == Packing("nibbles", "quant_nibbles", {"width": 3, "steps": [1, 2]}, layouts(RowInt8()))
    assert json.loads(json.dumps(packing.as_config())) == packing.as_config()


def test_rules_about_the_format_are_judged_and_those_about_the_machine_are_not():
    saving("--quantization", "nibbles", installed=both(rules=RULES))
    assert not_saved("--quantization", "nibbles", "--quant-nibbles-width", "5", installed=both(rules=RULES)) == [
        "5 bits are no nibble\n  set by: --quant-nibbles-width\n  remedy: --quant-nibbles-width 4"
    ]


def test_a_format_has_to_be_named():
    assert not_saved() == [
        "nothing says in which format the weights are to be packed\n"
        "  remedy: --quantization bytes\n"
        "  remedy: --quantization nibbles"
    ]
    assert not_saved(installed=manager()) == [
        "nothing says in which format the weights are to be packed\n  remedy: install a plugin that offers a quantizer"
    ]
    [problem] = not_saved("--plugins", "quant_bytes,quant_nibbles")
    assert problem.startswith("one quantizer can be used, and the named plugins offer 2: bytes, nibbles")


def test_flags_of_serving_are_refused():
    flags = ("--port", "1", "--enable-chunked-prefill", "--max-num-seqs", "4")
    assert not_saved("--quantization", "bytes", *flags) == [
        f"{flag} has no part in saving a packed checkpoint\n  remedy: drop it"
        for flag in ("--port", "--enable-chunked-prefill", "--max-num-seqs")
    ]


def test_what_is_packed_is_not_packed_again(packed):
    with pytest.raises(UserError) as error:
        compose_saving(["--model", "mine", "--quantization", "bytes"], env={}, manager=both())
    assert str(error.value) == (
        "mine is packed as nibbles already\n  set by: --model\n  remedy: choose the model that was packed"
    )


def test_a_model_that_is_not_there_is_told():
    with pytest.raises(UserError) as error:
        compose_saving(["--model", "./none", "--quantization", "bytes"], env={}, manager=both())
    assert str(error.value) == "there is no folder or file ./none\n  set by: --model\n  remedy: check the path"


def test_the_quantizers_that_come_along_say_what_is_free_at_load():
    for offered in PluginManager.discover().offers("quantizer"):
        assert isinstance(offered.offer, QuantizerOffer)
        assert offered.offer.at_load <= set(offered.offer.settings.model_fields)
