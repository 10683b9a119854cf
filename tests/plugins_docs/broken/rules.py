"""Sound rules, and what the contract has to say about unsound ones."""

from installed import install

from core.testing import RulesContract

SOUND = """
FEW = Rule(
    "few-{plugin}",
    (Condition("settings.max_num_seqs", ">", 64),
     Condition("settings.block_size", "<", FactRef("settings.max_num_seqs"))),
    "64 sequences are allowed, not {{settings.max_num_seqs}}",
    (Remedy("--max-num-seqs 64", {{"max_num_seqs": 64}}), Remedy("drop {plugin}", {{"plugins-": ["{plugin}"]}}),
     Remedy("larger pages", {{"block_size": FactRef("settings.max_num_seqs")}}), Remedy("ask for more")),
)
LONG = Rule("long-{plugin}", (Condition("settings.max_model_len", ">", 512),),
            "{{settings.max_model_len}} tokens are slow here",
            (Remedy("--max-model-len 512", {{"max_model_len": 512}}),), severity="warning")

@hookimpl
def register_rules():
    yield RulesOffer(name="{plugin}", summary="rules made up for a test", rules=(FEW, LONG))
"""


def mutant(plugin, *change):
    source = SOUND.format(plugin=plugin)
    for old, new in change:
        assert old in source
        source = source.replace(old, new)
    install(plugin, source)
    return plugin


class Contract(RulesContract):
    __test__ = False
    sound = {"max_num_seqs": 8, "max_model_len": 256, "max_num_batched_tokens": 512}

    @property
    def violating(self):
        return {
            f"few-{self.plugin}": {"max_num_seqs": 100, "max_num_batched_tokens": 2000},
            f"long-{self.plugin}": {"max_model_len": 1024, "max_num_batched_tokens": 2000},
        }


class TestSound(Contract):
    __test__ = True
    plugin = mutant("sound_rules")


class TestOneIsForgotten(Contract):
    __test__ = True
    plugin = mutant(
        "forgotten", ("rules=(FEW, LONG)", "rules=(FEW, LONG, Rule('more', LONG.when, LONG.reason, LONG.remedies))")
    )
    caught_by = "test_every_rule_has_settings_that_violate_it"


class TestAlwaysViolated(Contract):
    __test__ = True
    plugin = mutant("always", ('"settings.max_model_len", ">", 512', '"settings.max_model_len", ">", 5'))
    caught_by = "test_the_sound_configuration_composes"


class TestUnknownFact(Contract):
    __test__ = True
    plugin = mutant("unknown_fact", ("{settings.max_model_len} tokens", "{settings.max_length} tokens"))
    caught_by = "test_every_fact_is_declared"


class TestNeverViolated(Contract):
    __test__ = True
    plugin = mutant("never", ('"settings.max_num_seqs", ">", 64', '"settings.max_num_seqs", ">", 10**6'))
    caught_by = "test_each_is_violated_by_its_settings"


class TestSpeaksOfTheUnknown(Contract):
    __test__ = True
    plugin = mutant("speechless", ("not {settings.max_num_seqs}", "not on {device.capability}"))
    caught_by = "test_each_is_violated_by_its_settings"


class TestRemedyThatDoesNotCure(Contract):
    __test__ = True
    plugin = mutant("quack", ('{"max_num_seqs": 64}', '{"max_num_seqs": 65}'))
    caught_by = "test_every_remedy_cures"


class TestRemedyThatBreaksAnotherRule(Contract):
    __test__ = True
    plugin = mutant("worse", ('{"max_model_len": 512}', '{"max_model_len": 512, "max_num_batched_tokens": 4}'))
    caught_by = "test_every_remedy_cures"


class TestRemedyOfAnUnknownSetting(Contract):
    __test__ = True
    plugin = mutant("strange", ('{"max_model_len": 512}', '{"max_model_length": 512, "max_model_len": 512}'))
    caught_by = "test_every_remedy_cures"
