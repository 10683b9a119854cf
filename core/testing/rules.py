"""The contract of rules: each can be violated, says so in whole sentences, and every way out that it names is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from core.interfaces.rules import Remedy, Rule
from core.testing.contract import Contract
from core.testing.plugin import offers_of, plugin_module

if TYPE_CHECKING:
    from core.compose.composition import Composition
    from core.compose.probe import DeviceProbe
    from core.compose.rules import Violation

GIB = 1 << 30


class RulesContract(Contract, kit=True):
    """Give ``plugin`` and ``violating``: for each rule of the plugin, by id, settings that violate it.

    Keys are core settings ("max_model_len") or the plugin's ("my_plugin.size"); the plugin itself is always named, unless the
    settings have "plugins". ``sound`` are settings with which the plugin composes without a complaint; what violates is added
    to them. ``model`` is what is composed with; ``machine`` what it is composed for, by rule id ("" for ``sound``).
    """

    plugin: str
    violating: ClassVar[Mapping[str, Mapping[str, Any]]]
    sound: ClassVar[Mapping[str, Any]] = {}
    model: str = "random:tiny"

    def rules(self) -> tuple[Rule, ...]:
        """All rules of the plugin's offers."""
        offers = offers_of(plugin_module(self.plugin))
        return tuple(rule for offer in offers for rule in (*offer.rules, *offer.idle_rules))

    def machine(self, rule: str) -> DeviceProbe:
        """The machine to compose for: by default one with eight cores, 64 GiB and no CUDA device."""
        from core.compose.probe import DeviceProbe

        return DeviceProbe("a CPU", 8, ("avx2",), 64 * GIB, 60 * GIB)

    # --- what is promised -------------------------------------------------------------------------------------------

    def test_every_rule_has_settings_that_violate_it(self) -> None:
        assert {rule.id for rule in self.rules()} == set(self.violating), (
            "violating names each rule of the plugin, and no other"
        )

    def test_the_sound_configuration_composes(self) -> None:
        composition = self.compose(self.configuration({}), "")
        assert composition.plan is not None, "\n".join(str(problem) for problem in composition.problems)
        broken = {violation.id for violation in composition.violations} & {rule.id for rule in self.rules()}
        assert not broken, f"the sound configuration violates {sorted(broken)}"

    def test_every_fact_is_declared(self) -> None:
        from core.compose.rules import undeclared

        facts = self.compose(self.configuration({}), "").facts
        for rule in self.rules():
            assert not undeclared(rule, facts), "\n".join(problem.what for problem in undeclared(rule, facts))

    def test_each_is_violated_by_its_settings(self) -> None:
        for rule in self.rules():
            composition = self.compose(self.configuration(self.violating[rule.id]), rule.id)
            violation = self.find(composition, rule.id)
            assert violation is not None, f"{self.violating[rule.id]} does not violate {rule.id}"
            assert "{" not in violation.reason, f"{rule.id}: {violation.reason}"
            assert "unknown" not in violation.reason, f"{rule.id} speaks of a fact that has no value: {violation.reason}"
            assert violation.remedies, f"{rule.id} has no remedy that applies here"
            if rule.severity == "error":
                assert composition.plan is None
                assert violation.problem() in composition.problems
            else:
                assert composition.plan is not None, "a warning refuses nothing; the settings violate something else"
                assert violation.problem() in composition.plan.warnings

    def test_every_remedy_cures(self) -> None:
        for rule in self.rules():
            settings = self.configuration(self.violating[rule.id])
            before = self.compose(settings, rule.id)
            violation = self.find(before, rule.id)
            assert violation is not None, f"{self.violating[rule.id]} does not violate {rule.id}"
            for remedy in violation.remedies:
                if remedy.set:
                    after = self.compose(self.followed(remedy, settings), rule.id)
                    assert self.find(after, rule.id) is None, f"{rule.id}: {remedy.text!r} ({dict(remedy.set)}) does not cure"
                    worse = [problem.what for problem in after.problems if problem not in before.problems]
                    assert not worse, f"{rule.id}: {remedy.text!r} cures, and brings about: {'; '.join(worse)}"

    def followed(self, remedy: Remedy, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings with a remedy followed. Whoever takes another's offer for the plugin's own names it no more."""
        from core.compose.settings import KIND_SETTINGS

        changed = applied(remedy, settings)
        offers = offers_of(plugin_module(self.plugin))
        own = {KIND_SETTINGS[offer.kind]: offer.name for offer in offers if offer.kind in KIND_SETTINGS}
        if any(remedy.set.get(setting, name) not in (name, "none") for setting, name in own.items()):
            changed["plugins"] = [name for name in changed["plugins"] if name != self.plugin]
        return changed

    def find(self, composition: Composition, rule: str) -> Violation | None:
        return next((violation for violation in composition.violations if violation.id == rule), None)

    def configuration(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {"plugins": [self.plugin], "model": self.model, **self.sound, **settings}

    def compose(self, settings: Mapping[str, Any], rule: str) -> Composition:
        """As a launch composes them: the core, every installed plugin, and these settings."""
        from core.compose.composition import attempt
        from core.compose.first_pass import first_pass
        from core.plugin_manager import PluginManager

        tables: dict[str, Any] = {}
        for key, value in settings.items():
            plugin, dot, name = key.partition(".")
            if dot:
                tables.setdefault(plugin, {})[name] = value
            else:
                tables[key] = value
        return attempt(first_pass((), {}, tables), PluginManager.discover(), self.machine(rule))


def applied(remedy: Remedy, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with a remedy followed. Whoever drops a plugin drops its settings too."""
    changed = dict(settings)
    for key, value in remedy.set.items():
        if key == "plugins+":
            changed["plugins"] = [*changed["plugins"], *value]
        elif key == "plugins-":
            changed["plugins"] = [name for name in changed["plugins"] if name not in value]
            changed = {name: kept for name, kept in changed.items() if name.partition(".")[0] not in value}
        else:
            changed[key] = value
    return changed
