"""What the author of a wrong plugin is told: which plugin, what is wrong with it, where."""

import logging

import pytest
from pydantic import Field

from core.compose import compose
from core.compose.build import create_front_end, page_folder
from core.compose.composition import attempt
from core.compose.first_pass import first_pass
from core.compose.report import explain_text
from core.errors import UserError
from core.interfaces.rules import Condition, Fact, Remedy, Rule
from core.offers import (
    Alias,
    CheckpointFormatOffer,
    ForeignWord,
    FrontEndOffer,
    ModelOffer,
    PageOffer,
    ParallelismOffer,
    RulesOffer,
    SamplerOffer,
    Section,
    ToolParserOffer,
)
from core.plugin_manager import PluginManager
from tests.compose.fakes import CPU, Point, create, manager, plugin, quantizer, sampler

TINY = ["--model", "random:tiny", "--dtype", "float32", "--plugins", "mine"]
RULE = Rule("mine-no", (Condition("settings.max_num_seqs", ">", 1),), "no", (Remedy("--max-num-seqs 1"),))


class Required(Section):
    size: int = Field(description="how much")


class Refused(Section):
    size: int = Field(0, ge=1, description="how much")


def broken(**hooks):
    [found] = PluginManager.discover(entry_points=[Point("mine", plugin("mine_module", **hooks))]).plugins
    assert found.state == ("broken" if found.error else "loaded")
    return found.error


def rules(**more):
    return RulesOffer(**{"name": "mine", "summary": "s"} | more)


def when(*conditions, **more):
    return (Rule("mine-no", conditions, "no", (Remedy("--max-num-seqs 1"),), **more),)


# --- offers, while plugins are loaded -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offer", "error"),
    [
        (rules(rules=RULE), "rules of the rules 'mine' must be a tuple of Rule, not a Rule: a comma makes it one, (it,)"),
        (
            rules(rules=(Rule("mine-no", RULE.when[0], "no", RULE.remedies),)),
            "rules[0].when of the rules 'mine' must be a tuple of Condition, not a Condition: a comma makes it one, (it,)",
        ),
        (
            rules(rules=(Rule("mine-no", RULE.when, "no", ("--max-num-seqs 1",)),)),
            "rules[0].remedies[0] of the rules 'mine' must be a Remedy, not '--max-num-seqs 1'",
        ),
        (
            rules(rules=when(Condition("settings.max_num_seqs", "=>", 1))),
            "rules[0].when[0].op of the rules 'mine' must be one of '==', '!=', '<', '<=', '>', '>=', 'in', 'not in', "
            "'contains', 'divides', 'not divides', not '=>'",
        ),
        (
            rules(rules=when(*RULE.when, severity="fatal")),
            "rules[0].severity of the rules 'mine' must be one of 'error', 'warning', not 'fatal'",
        ),
        (rules(rules=when()), "rule mine-no has no condition: it would refuse everything"),
        (rules(facts=(Fact("mine.x", "int", "d"),)), "facts[0].type of the rules 'mine' must be a type, not 'int'"),
        (rules(derive=lambda: {}), "derive of the rules 'mine' is called with 1 argument, which it does not take"),
        (quantizer("mine", bits="4"), "bits of the quantizer 'mine' must be a number, not '4'"),
        (
            SamplerOffer(name="mine", summary="s", create=create, frameworks="torch"),
            "frameworks of the sampler 'mine' must be a frozenset of string, not 'torch': write frozenset({'torch'})",
        ),
        (
            SamplerOffer(name="mine", summary="s", create=create, frameworks=["torch"]),
            "frameworks of the sampler 'mine' must be a frozenset of string, not a list: write frozenset(...) around it",
        ),
        (
            ModelOffer(name="mine", summary="s", architectures="MyForCausalLM", family=Point),
            "architectures of the model 'mine' must be a tuple of string, not 'MyForCausalLM': a comma makes it one, (it,)",
        ),
        (
            sampler("mine", settings={"a": 1}),
            "settings of the sampler 'mine' must be a subclass of core.offers.Section or None, not a dict",
        ),
        (sampler("mine", settings=Required), "its setting size has no default: give it one, since settings work unset"),
        (
            sampler("mine", settings=Refused),
            "the default of its setting size is refused by its own type: Input should be greater than or equal to 1",
        ),
        (
            sampler("mine", aliases=Alias("x", flag="--x", chooses="mine")),
            "aliases of the sampler 'mine' must be a tuple of Alias, not an Alias: a comma makes it one, (it,)",
        ),
        (
            sampler("mine", aliases=(Alias("x", flag="x", chooses="mine"),)),
            "alias 'x' is no flag: a flag is written as it is typed, like '--my-flag'",
        ),
        (
            sampler("mine", foreign_words=(ForeignWord("r", "explodes", flag="--x"),)),
            "foreign_words[0].effect of the sampler 'mine' must be one of 'none', 'warns', 'refuses', 'later', 'unknown', "
            "not 'explodes'",
        ),
        (
            SamplerOffer(name="mine", summary="s", create="x", frameworks=frozenset()),
            "create of the sampler 'mine' must be a function, not 'x'",
        ),
        (
            CheckpointFormatOffer(name="mine", summary="s", create=create),
            "create of the checkpoint format 'mine' is called with 0 arguments, which it does not take",
        ),
        (
            ToolParserOffer(name="mine", summary="s", create=create, recognizes=lambda config: True),
            "recognizes of the tool parser 'mine' is called with 2 arguments, which it does not take",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_an_offer_of_other_types_than_it_says_breaks_its_plugin(offer, error):
    assert broken(**{f"register_{offer.kind.replace('cy', 'cie').removesuffix('s')}s": [offer]}) == error


@pytest.mark.parametrize(
    ("hooks", "error"),
    [
        (
            {"register_schedulers": [sampler("mine")]},
            "register_schedulers gave the SamplerOffer 'mine', which is no SchedulerOffer",
        ),
        ({"register_samplers": [SamplerOffer]}, "register_samplers gave the class SamplerOffer, which is no SamplerOffer"),
        (
            {"register_samplers": sampler("mine")},
            "register_samplers returned the SamplerOffer 'mine' instead of offers: yield it",
        ),
        ({"register_samplers": []}, "it offers nothing: register_samplers gave no offer"),
        ({}, "it offers nothing: its module has no function that is marked @hookimpl"),
    ],
    ids=["wrong", "class", "single", "empty", "nothing"],
)
def test_hooks_that_give_no_offers_break_their_plugin(hooks, error):
    assert broken(**hooks) == error


def test_a_hook_that_is_not_marked_breaks_its_plugin():
    module = plugin("mine_module", register_rules=[rules()])
    module.register_samplers = lambda: [sampler("mine")]
    [found] = PluginManager.discover(entry_points=[Point("mine", module)]).plugins
    assert found.error == "register_samplers is not marked @hookimpl, so that nobody would call it"
    from core.hookspecs import register_samplers

    module.register_samplers = register_samplers  # imported to be read about
    [found] = PluginManager.discover(entry_points=[Point("mine", module)]).plugins
    assert found.state == "loaded"


def test_a_plugin_whose_name_is_none_is_found_by_it():
    [problem] = problems_of(manager(Point("Bad-Name", plugin("m", register_samplers=[sampler("x")]))), "bad_name")
    assert str(problem) == (
        "plugin Bad-Name of testdist 1.0 (m) is broken: its name must be lower-case letters, digits and _, "
        "for it names a TOML table\n"
        "  set by: --plugins\n"
        "  remedy: mend or reinstall testdist\n"
        "  remedy: leave the plugin out: --without Bad-Name"
    )
    point = Point("Bad-Name", plugin("m", register_samplers=[sampler("x")]))
    assert attempt(first_pass(["--model", "random:tiny", "--without", "Bad-Name"], {}), manager(point), CPU).problems == []
    [problem] = problems_of(manager(), "PLAIN")
    assert problem.what == "there is no plugin 'PLAIN'; did you mean 'plain'?"


# --- functions of offers, while it is composed and launched -------------------------------------------------------------


def problems_of(installed, named="mine", *argv):
    """Told, and not raised: whoever composes for a page shows them there."""
    return attempt(first_pass([*TINY[:-1], named, *argv], {}), installed, CPU).problems


def mine(hook, offer):
    return manager(Point("mine", plugin("mine_module", **{hook: [offer]})))


def failing(*arguments):
    raise KeyError("size")


RAISED = f"raised KeyError: 'size' ({__name__}, line {failing.__code__.co_firstlineno + 1})"


@pytest.mark.parametrize(
    ("hook", "offer", "what"),
    [
        ("register_rules", rules(derive=failing), f"derive of the rules 'mine' of {{}} {RAISED}"),
        (
            "register_rules",
            rules(derive=lambda facts: None),
            "derive of the rules 'mine' of {} returned None, which is no mapping",
        ),
        (
            "register_rules",
            rules(facts=(Fact("device.kind", str, "d"),), derive=lambda facts: {"device.kind": "cuda"}),
            "{} declares the fact device.kind, which is one of the core: give it a name of its own",
        ),
        (
            "register_rules",
            rules(facts=(Fact("mine.x", int, "d"),), derive=lambda facts: {"mine.x": "text"}),
            "{} computes the fact mine.x as 'text', and declares it as int",
        ),
        (
            "register_parallelisms",
            ParallelismOffer(name="mine", summary="s", create=create, frameworks=frozenset({"fake"}), ranks=failing),
            f"ranks of the parallelism 'mine' of {{}} {RAISED}",
        ),
        (
            "register_parallelisms",
            ParallelismOffer(name="mine", summary="s", create=create, frameworks=frozenset({"fake"}), ranks=lambda _: "2"),
            "ranks of the parallelism 'mine' of {} returned '2', which is no whole number",
        ),
        (
            "register_quantizers",
            quantizer("mine", stored_bits=failing),
            f"stored_bits of the quantizer 'mine' of {{}} {RAISED}",
        ),
        (
            "register_quantizers",
            quantizer("mine", stored_bits=lambda *_: "4"),
            "stored_bits of the quantizer 'mine' of {} returned '4', which is no number or None",
        ),
        (
            "register_tool_parsers",
            ToolParserOffer(name="mine", summary="s", create=create, recognizes=failing),
            f"recognizes of the tool parser 'mine' of {{}} {RAISED}",
        ),
        (
            "register_checkpoint_formats",
            CheckpointFormatOffer(name="mine", summary="s", create=failing),
            f"create of the checkpoint format 'mine' of {{}} {RAISED}",
        ),
        (
            "register_checkpoint_formats",
            CheckpointFormatOffer(name="mine", summary="s", create=lambda: None),
            "create of the checkpoint format 'mine' of {} returned None, which is no core.interfaces.model.CheckpointFormat",
        ),
        (
            "register_models",
            ModelOffer(name="mine", summary="s", architectures=("Ernie4_5ForCausalLM",), family=lambda: None),
            "family of the model 'mine' of {} returned None, which is no core.interfaces.model.ModelFamily",
        ),
    ],
    ids=lambda value: value[:50] if isinstance(value, str) else "",
)
def test_a_function_that_fails_while_it_is_composed_is_told_as_its_plugins(hook, offer, what):
    named = "mine" if not isinstance(offer, ToolParserOffer) else "sampler_standard"  # a parser that is named is not asked
    argv = ["--model", "random:tiny", "--quantization", "none"] if offer.kind != "quantizer" else []
    [problem] = problems_of(mine(hook, offer), named, *argv)
    assert problem.what == what.format("plugin mine of testdist 1.0 (mine_module)")
    assert problem.remedies == ("mend or reinstall testdist", "leave the plugin out: --without mine")


@pytest.mark.parametrize(
    ("made", "what"),
    [
        (failing, RAISED),
        (lambda context: {}, "returned a dict, which is no core.interfaces.frontend.FrontEnd"),
        (lambda context: FrontEndOffer, "returned the class FrontEndOffer, which is no core.interfaces.frontend.FrontEnd"),
    ],
    ids=["raises", "dict", "class"],
)
def test_a_create_that_fails_is_told_as_its_plugins(made, what, caplog):
    installed = mine("register_front_ends", FrontEndOffer(name="mine", summary="s", create=made))
    plan = compose(TINY, env={}, probe=CPU, manager=installed)
    with caplog.at_level(logging.DEBUG, logger="dovetail"), pytest.raises(UserError) as refused:
        create_front_end(plan, installed)
    assert str(refused.value) == (
        f"create of the front end 'mine' of plugin mine of testdist 1.0 (mine_module) {what}\n"
        "  remedy: mend or reinstall testdist\n"
        "  remedy: leave the plugin out: --without mine"
    )
    if made is failing:
        assert isinstance(refused.value.__cause__, KeyError)
        assert "in failing" in caplog.text


def test_the_facts_of_a_plugin_are_explained():
    fact = Fact("mine.layers", int, "layers doubled")
    offer = rules(facts=(fact,), derive=lambda facts: {"mine.layers": 2 * (facts["model.layers"] or 0)})
    plan = compose(TINY, env={}, probe=CPU, manager=mine("register_rules", offer))
    assert f"  mine.layers              {2 * plan.spec.num_layers}" in explain_text(plan).splitlines()


def test_a_create_may_refuse_in_its_own_words():
    def refuses(context):
        raise UserError.of("port 8000 is in use", "mine.port")

    installed = mine("register_front_ends", FrontEndOffer(name="mine", summary="s", create=refuses))
    with pytest.raises(UserError, match=r"^port 8000 is in use"):
        create_front_end(compose(TINY, env={}, probe=CPU, manager=installed), installed)


def test_a_page_without_a_folder_is_told_as_its_plugins(tmp_path):
    installed = mine("register_pages", PageOffer(name="mine", summary="s", folder=lambda: tmp_path / "gone"))
    with pytest.raises(UserError) as refused:
        page_folder(compose(TINY, env={}, probe=CPU, manager=installed), installed)
    whose = "plugin mine of testdist 1.0 (mine_module)"
    assert (
        refused.value.problems[0].what
        == f"folder of the page 'mine' of {whose} returned {tmp_path / 'gone'}, where no folder is"
    )


def test_a_flag_of_the_cores_cannot_be_a_plugins():
    alias = Alias("x", flag="--model", chooses="mine")
    installed = mine("register_samplers", sampler("mine", aliases=(alias,)))
    [problem] = problems_of(installed)
    assert problem.what == (
        "plugin mine of testdist 1.0 (mine_module) is broken: its alias would be --model, which is a flag of the core already"
    )


def test_a_setting_that_two_plugins_claim_is_a_conflict_of_both():
    class Mine(Section):
        http_port: int = Field(1, description="a port")

    openai = Point("openai", plugin("mine_module", register_samplers=[sampler("mine", settings=Mine)]))
    [problem] = problems_of(manager(openai), "openai")
    assert str(problem) == (
        "two plugins claim --openai-http-port: openai of testdist 1.0 (mine_module); openai_http of testdist 1.0 (fake_http)\n"
        "  set by: installed distributions\n"
        "  remedy: leave one out: --without openai, or --without openai_http"
    )
