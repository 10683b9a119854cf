import pytest

from core.errors import UserError
from core.hookspecs import hookimpl
from core.offers import Alias, SamplerOffer, Section
from core.plugin_manager import PluginManager
from tests.compose.fakes import Point, plugin, quantizer, sampler


def discover(*points, **more):
    return PluginManager.discover(entry_points=points, **more)


def only(manager):
    [found] = manager.plugins
    return found


def test_a_loaded_plugin_has_offers_and_provenance():
    manager = discover(Point("good", plugin("good_module", register_samplers=[sampler("b"), sampler("a")])))
    found = only(manager)
    assert (found.name, found.state, found.provenance) == ("good", "loaded", "testdist 1.0 (good_module)")
    assert [(each.name, each.plugin, each.provenance) for each in manager.offers("sampler")] == [
        ("a", "good", "testdist 1.0 (good_module)"),
        ("b", "good", "testdist 1.0 (good_module)"),
    ]
    assert manager.offers("quantizer") == []


@pytest.mark.parametrize("error", [ImportError("no kernels here"), ZeroDivisionError(), SystemExit("bye")])
def test_a_plugin_that_does_not_import_is_broken_and_harms_nobody(error):
    manager = discover(Point("bad", error), Point("good", plugin("good_module", register_samplers=[sampler("a")])))
    assert [(each.name, each.state) for each in manager.plugins] == [("bad", "broken"), ("good", "loaded")]
    assert manager.get("bad").error.startswith(type(error).__name__)
    assert [each.name for each in manager.offers("sampler")] == ["a"]


def test_a_mistyped_hook_breaks_its_plugin_only():
    bad = plugin("bad_module", register_sampler=[sampler("a")], register_quantizers=[quantizer("q")])
    manager = discover(Point("bad", bad), Point("good", plugin("good_module", register_samplers=[sampler("a")])))
    assert manager.get("bad").error == "register_sampler is no hook; did you mean 'register_samplers'?"
    assert manager.offers("quantizer") == []
    assert manager.get("good").state == "loaded"


def test_a_hook_with_arguments_breaks_its_plugin():
    module = plugin("bad_module")
    exec("def register_samplers(config):\n    return []", module.__dict__)
    module.register_samplers = hookimpl(module.register_samplers)
    found = only(discover(Point("bad", module)))
    assert found.state == "broken"
    assert "config" in found.error


def test_a_hook_that_fails_midway_offers_nothing():
    module = plugin("bad_module")
    module.sampler = sampler("a")
    exec("def register_samplers():\n    yield sampler\n    raise OSError('disk')", module.__dict__)
    module.register_samplers = hookimpl(module.register_samplers)
    manager = discover(Point("bad", module))
    assert only(manager).error == "OSError: disk (bad_module, line 3)"
    assert manager.offers("sampler") == []


class One(Section, frozen=True):
    a: int = 1


class Two(Section, frozen=True):
    b: int = 1


@pytest.mark.parametrize(
    ("offers", "error"),
    [
        (None, "register_samplers returned None instead of offers; is a yield missing?"),
        ([3], "register_samplers gave 3, which is no SamplerOffer"),
        ([quantizer("q")], "which is no SamplerOffer"),
        ([sampler("Big Name")], "'Big Name' cannot be the name of an offer"),
        ([sampler("auto")], "'auto' cannot be the name of an offer"),
        ([sampler("a"), sampler("a")], "it offers two of kind sampler with the name 'a'"),
        (
            [sampler("a", settings=dict)],
            "settings of the sampler 'a' must be a subclass of core.offers.Section or None, not the class dict",
        ),
        (
            [sampler("a", settings=One), sampler("b", settings=Two)],
            "its offers have different settings (One, Two): a plugin has one table, so they share one model",
        ),
        (
            [sampler("a", aliases=(Alias("x", flag="--x", chooses="b"),))],
            "alias '--x' chooses 'b', which it does not offer",
        ),
        (
            [sampler("a", aliases=(Alias("x", flag="--x", env="X", chooses="a"),))],
            "alias '--x' must have a flag or a variable, and choose an offer or set a setting",
        ),
        (
            [sampler("a", settings=One, aliases=(Alias("x", flag="--x", chooses="a", sets="a"),))],
            "alias '--x' must have a flag or a variable, and choose an offer or set a setting",
        ),
    ],
)
def test_invalid_offers_break_their_plugin(offers, error):
    manager = discover(Point("bad", plugin("bad_module", register_samplers=offers)))
    assert only(manager).state == "broken"
    assert error in only(manager).error


def test_a_name_that_is_no_table_name_is_refused():
    found = only(discover(Point("Not-A-Name", plugin("module"))))
    assert found.error == "its name must be lower-case letters, digits and _, for it names a TOML table"


def test_two_distributions_with_one_name_are_both_reported():
    points = [Point("mine", plugin("one"), "first", "1.0"), Point("mine", plugin("two"), "second", "2.0")]
    manager = discover(*points)
    assert [str(problem) for problem in manager.conflicts] == [
        "2 plugins are called 'mine': first 1.0 (one); second 2.0 (two)\n"
        "  set by: installed distributions\n"
        "  remedy: uninstall one of them\n"
        "  remedy: leave both out: --without mine"
    ]
    assert only(manager).state == "broken"
    assert discover(*points, blocked=["mine"]).conflicts == ()


def test_two_offers_of_one_kind_with_one_name_are_an_error_with_both_provenances():
    manager = discover(
        Point("one", plugin("one_module", register_samplers=[sampler("same")]), "first"),
        Point("two", plugin("two_module", register_samplers=[sampler("same")]), "second"),
        Point("three", plugin("three_module", register_quantizers=[quantizer("same")]), "third"),
    )
    assert [str(problem) for problem in manager.conflicts] == [
        "two plugins offer a sampler 'same': one of first 1.0 (one_module); two of second 1.0 (two_module)\n"
        "  set by: installed distributions\n"
        "  remedy: leave one out: --without one, or --without two"
    ]


def test_a_blocked_plugin_is_never_imported():
    manager = discover(Point("bad", ImportError("x")), blocked=["bad"])
    assert only(manager).state == "blocked"


def test_load_only_imports_nothing_else():
    class Untouchable(Point):
        def load(self):
            raise AssertionError("imported")

    points = [Point("good", plugin("good_module", register_samplers=[sampler("a")])), Untouchable("other", plugin("x"))]
    manager = PluginManager.load_only(["good"], entry_points=points)
    assert [each.name for each in manager.plugins] == ["good"]


def test_load_only_refuses_what_is_broken_or_missing():
    with pytest.raises(UserError) as error:
        PluginManager.load_only(["bad", "gone"], entry_points=[Point("bad", ImportError("no kernels here"))])
    bad, gone = error.value.problems
    assert bad.what.startswith("plugin bad of testdist 1.0 (no kernels here) is broken: ImportError: no kernels here (tests.")
    assert gone.what == "there is no plugin 'gone'"


def test_the_trace_shows_each_call_and_what_it_gave():
    lines = []
    module = plugin("good_module", register_samplers=[sampler("a")], register_quantizers=[quantizer("q")])
    manager = discover(Point("good", module), trace=lines.append)
    assert lines == [
        "good: register_quantizers()",
        "  -> QuantizerOffer 'q': quantizer q",
        "good: register_samplers()",
        "  -> SamplerOffer 'a': sampler a",
    ]
    assert [each.name for each in manager.offers("sampler")] == ["a"]


def test_nothing_of_pluggy_leaves_the_manager():
    manager = discover(Point("good", plugin("good_module", register_samplers=[sampler("a")])))
    assert isinstance(manager.offers("sampler")[0].offer, SamplerOffer)
    public = [getattr(manager, name) for name in dir(manager) if not name.startswith("_")]
    assert not any(type(value).__module__.startswith("pluggy") for value in public)
