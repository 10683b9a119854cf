"""A sound plugin, and what the contract has to say about unsound ones."""

from installed import install

from core.testing import PluginContract

SOUND = """
class Settings(Section):
    size: int = Field(3, description="how large it is")

SMALL = Rule("too-small", (Condition("settings.{plugin}.size", "<", 1),), "size {{settings.{plugin}.size}} is too small",
             (Remedy("--size 1", {{"{plugin}.size": 1}}),))

@hookimpl
def register_samplers():
    yield SamplerOffer(name="{plugin}_draw", summary="draws", frameworks=frozenset({{"torch"}}), create=lambda context: None,
                       settings=Settings, rules=(SMALL,), aliases=(Alias("its size", flag="--{plugin}-large", sets="size"),))
"""


def mutant(plugin, *change, **more):
    """The sound source under another name, with one thing changed."""
    source = SOUND.format(plugin=plugin)
    for old, new in change:
        assert old in source
        source = source.replace(old, new)
    install(plugin, source, **more)
    return plugin


class TestSound(PluginContract):
    plugin = mutant("sound")


class TestNotInstalled(PluginContract):
    plugin = "nowhere"
    caught_by = "test_the_entry_point_names_a_module"


class TestImportsTorch(PluginContract):
    plugin = mutant("heavy", ("\nclass Settings", "\nimport torch\n\nclass Settings"))
    caught_by = "test_loading_it_imports_nothing_heavy"


class TestImportsTorchInItsHook(PluginContract):
    plugin = mutant("heavy_hook", ("    yield", "    import torch\n    yield"))
    caught_by = "test_loading_it_imports_nothing_heavy"


class TestMisspeltHook(PluginContract):
    plugin = mutant("misspelt", ("register_samplers", "register_sampler"))
    caught_by = "test_every_hook_is_one_of_the_core"


class TestNoHook(PluginContract):
    plugin = mutant("hookless", ("@hookimpl\n", ""))
    caught_by = "test_every_hook_is_one_of_the_core"


class TestOffersTheWrongKind(PluginContract):
    plugin = mutant("wrong_kind", ("register_samplers", "register_quantizers"))
    caught_by = "test_every_hook_gives_offers_of_its_kind"


class TestNoSummary(PluginContract):
    plugin = mutant("wordless", ('summary="draws"', 'summary=" "'))
    caught_by = "test_offers_are_named_and_described"


class TestNameWithSpaces(PluginContract):
    plugin = mutant("spaced", ('name="spaced_draw"', 'name="my draw"'))
    caught_by = "test_offers_are_named_and_described"


class TestSettingWithoutDescription(PluginContract):
    plugin = mutant("silent", (', description="how large it is"', ""))
    caught_by = "test_settings_have_descriptions_and_work_unset"


class TestSettingWithoutDefault(PluginContract):
    plugin = mutant("demanding", ("Field(3, ", "Field("))
    caught_by = "test_settings_have_descriptions_and_work_unset"


class TestAliasOfNothing(PluginContract):
    plugin = mutant("astray", ('sets="size"', 'sets="length"'))
    caught_by = "test_aliases_lead_somewhere"


class TestRuleWithoutRemedy(PluginContract):
    plugin = mutant("helpless", ('(Remedy("--size 1", {"helpless.size": 1}),)', "()"))
    caught_by = "test_rules_explain_themselves"


class TestRuleThatAlwaysHolds(PluginContract):
    plugin = mutant("total", ('(Condition("settings.total.size", "<", 1),)', "()"))
    caught_by = "test_rules_explain_themselves"


class TestRaisesInItsHook(PluginContract):
    plugin = mutant(
        "raising", ("    yield", "    if 'core.plugin_manager' in __import__('sys').modules: raise OSError\n    yield")
    )
    caught_by = "test_it_is_loaded_by_the_core"


class TestNoReadme(PluginContract):
    plugin = mutant("unread", readme=None)
    caught_by = "test_there_is_a_readme"


class TestReadmeOfAnother(PluginContract):
    plugin = mutant("mistaken", readme="about something else")
    caught_by = "test_there_is_a_readme"
