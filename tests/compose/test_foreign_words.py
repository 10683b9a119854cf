"""Words of other servers that mean nothing here: what is told of them, and YAML files."""

import pytest

from core.compose import compose
from core.compose.configuration import read
from core.compose.first_pass import first_pass
from core.errors import UserError
from core.interfaces.rules import Condition, Remedy, Rule
from core.offers import Alias, ForeignWord, RulesOffer, Section
from tests.compose.fakes import CPU, Point, manager, plugin, sampler

WORDS = (
    ForeignWord("no porters", "warns", flag="--porters", fine=("1",)),
    ForeignWord("no experts", "refuses", flag="--enable-experts", switch=True, remedy="drop the experts"),
    ForeignWord("several servers", "later", flag="--router"),
    ForeignWord("always so", "none", flag="--load_choices"),
    ForeignWord("not offered", "refuses", flag="--quantization", values=("w2", "{*")),
    ForeignWord("a setting of ours", "refuses", flag="--seed"),
    ForeignWord("no such hardware", "warns", env="XX_CHIP_*"),
    ForeignWord("is known", "warns", env="XX_CLASS"),
    ForeignWord("not known", "unknown", env="XX_*"),
)
ALIASES = (
    Alias("patience", flag="--grace", sets="drain_timeout", translates=(("0", "inf"),)),
    Alias("more log", env="XX_DEBUG", sets="log_level", translates=(("1", "debug"), ("0", None))),
)


def installed():
    offer = RulesOffer(name="other", summary="another server's words", foreign_words=WORDS, aliases=ALIASES)
    return manager(Point("other", plugin("other_module", register_rules=[offer])))


def configured(*argv, env=None, file=None):
    first = first_pass([*argv, *(["--config", str(file)] if file else [])], env or {}, {})
    return read(first, installed())


def texts(problems):
    return [str(problem) for problem in problems]


def test_a_word_that_warns_does_so_with_its_reason_and_only_where_it_asks_for_something_else():
    found = configured("--porters", "4", env={"XX_CHIP_MODE": "1"})
    assert found.problems == []
    assert texts(found.remarks) == [
        "XX_CHIP_MODE has no effect here: no such hardware\n  set by: $XX_CHIP_MODE",
        "--porters has no effect here: no porters",
    ]
    for fine in (["--porters", "1"], ["--load-choices", "anything"], ["--no-enable-experts"], ["--enable-experts=0"]):
        found = configured(*fine)
        assert (found.problems, found.remarks) == ([], []), fine


def test_what_would_change_what_is_served_is_refused_with_a_way_out():
    assert texts(configured("--enable_experts", "--quantization", "W2").problems) == [
        "--enable-experts cannot be had here: no experts\n  remedy: drop the experts",
        "--quantization w2 cannot be had here: not offered\n  remedy: drop --quantization",
    ]


def test_what_is_not_built_yet_says_so():
    assert texts(configured("--router", "x").problems) == [
        "--router is not built yet: several servers\n  remedy: drop --router"
    ]


def test_a_word_that_means_something_here_keeps_its_meaning():
    found = configured("--seed", "3", "--quantization", "none")
    assert (found.settings["seed"], found.settings["quantization"], found.problems) == (3, "none", [])


def test_a_variable_that_is_none_of_theirs_fails_with_the_nearest():
    assert texts(configured(env={"XX_CLAS": "1", "XX_": "1", "OTHER": "1"}).problems) == [
        "there is no variable XX_CLAS; did you mean 'XX_CLASS'?\n  set by: $XX_CLAS\n  remedy: unset XX_CLAS",
        "there is no variable XX_\n  set by: $XX_\n  remedy: unset XX_",
    ]


def test_a_flag_of_ours_is_suggested_before_one_of_theirs():
    [problem] = texts(configured("--portr", "1").problems)
    assert problem.startswith("there is no flag --portr; did you mean '--port'?")
    [problem] = texts(configured("--ruoter", "1").problems)
    assert problem.startswith("there is no flag --ruoter; did you mean '--router'?")


def test_values_that_are_spelled_otherwise_there():
    found = configured("--grace", "0", env={"XX_DEBUG": "1"})
    assert (found.settings["drain_timeout"], found.settings["log_level"]) == (float("inf"), "debug")
    found = configured("--grace", "7", env={"XX_DEBUG": "0"})
    assert (found.settings["drain_timeout"], found.settings["log_level"]) == (7.0, "info")


def test_remarks_stand_in_the_plan():
    argv = ["--model", "random:tiny", "--porters", "4"]
    plan = compose(argv, env={}, probe=CPU, manager=installed())
    assert texts(plan.warnings) == ["--porters has no effect here: no porters"]


def test_a_word_that_is_both_flag_and_variable_breaks_its_plugin():
    offer = RulesOffer(name="bad", summary="bad", foreign_words=(ForeignWord("x", "warns", flag="--x", env="X"),))
    found = manager(Point("bad", plugin("bad_module", register_rules=[offer])))
    assert found.get("bad").error == "foreign word '--x' must be either a flag or a variable"


# --- YAML ---------------------------------------------------------------------------------------------------------------


def test_a_yaml_file_has_flags_names_and_says_its_lines(tmp_path):
    file = tmp_path / "fd.yaml"
    file.write_text(
        "# a comment\nseed: 3\nenable_chunked_prefill: true\nporters: 2\nserved_model_name: x\nport: 81\n"
        "openai-http:\n  host: h\nenable_experts: false\nmax_num_seqs:\nopenai_http: {tls: true}\n"
    )
    found = configured(file=file)
    assert texts(found.problems) == [
        "there is no plugin 'openai-http' to give 'host' to; did you mean 'openai_http'?\n"
        f"  set by: {file}:8\n  remedy: --list-plugins shows what is installed"
    ]
    assert (found.settings["seed"], found.origin("seed")) == (3, f"{file}:2")
    assert (found.settings["scheduler"], found.origin("scheduler")) == ("chunked", f"{file}:3")
    assert texts(found.remarks) == [f"--porters has no effect here: no porters\n  set by: {file}:4"]
    assert found.settings["served_model_name"] == ("x",)
    assert found.section("openai_http")[0]["port"] == 81
    assert found.section("openai_http")[0]["tls"] is True
    assert configured("--seed", "4", file=file).settings["seed"] == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: [1", "the config file {path} is not YAML: expected ',' or ']', but got '<stream end>'\n  set by: {path}:1"),
        ("seed: 1\nport: 2\nseed: 3", "seed is set twice\n  set by: {path}:1, {path}:3\n  remedy: keep one of them"),
        (
            "- seed",
            "the config file {path} is no mapping of settings to values\n  set by: {path}:1\n  remedy: max_model_len: 4096",
        ),
    ],
)
def test_a_yaml_file_that_is_none(tmp_path, text, expected):
    file = tmp_path / "fd.yml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        configured(file=file)
    assert str(error.value) == expected.format(path=file)


def test_an_empty_yaml_file_says_nothing(tmp_path):
    file = tmp_path / "fd.yaml"
    file.write_text("# nothing\n")
    assert configured(file=file).given == {}


# --- rules of plugins that are not chosen -------------------------------------------------------------------------------


class Size(Section, frozen=True):
    size: int = 1


def sized():
    rule = Rule(
        id="size-without-sampler",
        when=(Condition("settings.sized.size", ">", 1),),
        reason="a size of {settings.sized.size} is for the sampler sized, and {chosen.sampler} is chosen",
        remedies=(Remedy("--sampler sized", {"sampler": "sized"}), Remedy("drop --sized-size", {"sized.size": 1})),
    )
    return manager(
        Point("sized", plugin("m", register_samplers=[sampler("sized", ("fake",), settings=Size, idle_rules=(rule,))]))
    )


def test_settings_of_a_plugin_that_is_not_chosen_are_told_in_its_own_words():
    with pytest.raises(UserError) as error:
        compose(["--model", "random:tiny", "--sized-size", "2"], env={}, probe=CPU, manager=sized())
    assert str(error.value) == (
        "a size of 2 is for the sampler sized, and standard is chosen\n"
        "  set by: --sized-size\n"
        "  remedy: --sampler sized\n"
        "  remedy: drop --sized-size"
    )


@pytest.mark.parametrize("argv", [["--sized-size", "2", "--sampler", "sized"], ["--sized-size", "1"]])
def test_and_not_where_it_is_chosen_or_what_is_said_is_so_anyway(argv):
    assert compose(["--model", "random:tiny", *argv], env={}, probe=CPU, manager=sized()).warnings == ()
