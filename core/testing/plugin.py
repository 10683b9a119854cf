"""The contract of a plugin as a package: found, light, described, and honest about its settings."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from core import hookspecs, offers
from core.offers import Offer, Section
from core.testing.contract import Contract

HEAVY = ("torch", "paddle", "triton", "transformers", "fastapi", "uvicorn", "ray", "tokenizers", "gguf")
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")

# Run in a fresh interpreter: import the module, call every hook, then say what was imported on the way.
LOAD = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
for value in list(vars(module).values()):
    if getattr(value, "dovetail_impl", None) is not None:
        for offer in value():
            for rule in offer.rules:
                repr(rule)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


class PluginContract(Contract, kit=True):
    """Give ``plugin``, the name of the entry point. The plugin has to be installed (``pip install -e .`` will do).

    ``readme``: the folder of its README.md, when that lies neither beside the module nor above it.
    """

    plugin: str
    readme: Path | None = None

    @property
    def entry_point(self) -> EntryPoint:
        return entry_point(self.plugin)

    @property
    def module(self) -> ModuleType:
        return plugin_module(self.plugin)

    # --- what is promised -------------------------------------------------------------------------------------------

    def test_the_entry_point_names_a_module(self) -> None:
        assert ":" not in self.entry_point.value, "an entry point names the module of the hooks, not something in it"
        assert self.module.__doc__, "the module says in a docstring what the plugin does"

    def test_loading_it_imports_nothing_heavy(self) -> None:
        command = [sys.executable, "-c", LOAD, self.entry_point.value]
        path = {"PYTHONPATH": os.pathsep.join(sys.path)}
        child = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, env=os.environ | path)
        assert child.returncode == 0, child.stderr
        imported = set(json.loads(child.stdout.splitlines()[-1]))
        assert not imported & set(HEAVY), (
            f"--help would import {', '.join(sorted(imported & set(HEAVY)))}: import inside create()"
        )

    def test_every_hook_is_one_of_the_core(self) -> None:
        hooks = dict(hooks_of(self.module))
        assert hooks, "the module marks no function with @hookimpl"
        for name, hook in hooks.items():
            assert hasattr(hookspecs, name), f"{name} is no hook of Dovetail"
            assert hook.__code__.co_argcount == 0, f"{name} takes no arguments"

    def test_every_hook_gives_offers_of_its_kind(self) -> None:
        for name, hook in hooks_of(self.module):
            wanted = kind_of(name)
            given = list(hook())
            assert given, f"{name} offers nothing"
            for offer in given:
                assert type(offer) is wanted, f"{name} is to give {wanted.__name__}, not {type(offer).__name__}"

    def test_offers_are_named_and_described(self) -> None:
        seen: set[tuple[str, str]] = set()
        for offer in offers_of(self.module):
            assert NAME.fullmatch(offer.name), f"{offer.name!r} is no name for a configuration"
            assert (offer.kind, offer.name) not in seen, f"two offers are named {offer.name}"
            seen.add((offer.kind, offer.name))
            assert offer.summary.strip(), f"{offer.name} has no summary"
            assert "\n" not in offer.summary
            assert not offer.summary.endswith("."), "a summary is a phrase for a list, without a full stop"

    def test_settings_have_descriptions_and_work_unset(self) -> None:
        for offer in offers_of(self.module):
            if offer.settings is None:
                continue
            assert issubclass(offer.settings, Section)
            offer.settings()  # every field has a default
            for name, field in offer.settings.model_fields.items():
                assert field.description, f"setting {name} of {offer.name} has no description: --help would be silent about it"
                assert not field.description.endswith("."), f"the description of {name} ends with a full stop"

    def test_aliases_lead_somewhere(self) -> None:
        own = {offer.name for offer in offers_of(self.module)}
        for offer in offers_of(self.module):
            for alias in offer.aliases:
                assert alias.summary, f"an alias of {offer.name} has no summary"
                assert (alias.flag is None) != (alias.env is None), "an alias is a flag or a variable"
                both = alias.chooses is not None and alias.sets is not None
                assert (alias.chooses or alias.sets) is not None, "an alias chooses an offer or sets a setting"
                assert both == (alias.asks is not None), "it does both where a key of the table asks for the offer"
                assert alias.flag is None or re.fullmatch(r"--.+|-[a-z]+", alias.flag)
                assert alias.env is None or alias.env == alias.env.upper()
                assert alias.chooses is None or alias.chooses in own, (
                    f"{alias.flag or alias.env} chooses another plugin's offer"
                )
                if alias.sets is not None:
                    assert alias.sets in setting_names(offer), (
                        f"{alias.flag or alias.env} sets {alias.sets}, which is no setting"
                    )

    def test_rules_explain_themselves(self) -> None:
        seen: set[str] = set()
        for offer in offers_of(self.module):
            for rule in (*offer.rules, *offer.idle_rules):
                assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", rule.id), (
                    f"{rule.id!r}: ids are lower-case words joined by hyphens"
                )
                assert rule.id not in seen, f"two rules have the id {rule.id}"
                seen.add(rule.id)
                assert rule.when, f"{rule.id} forbids everything: it has no condition"
                assert rule.reason[:1] == rule.reason[:1].lower(), f"{rule.id}: a reason begins in lower case"
                assert not rule.reason.endswith("."), f"{rule.id}: a reason ends without a full stop"
                assert rule.remedies, f"{rule.id} tells nobody what to do"

    def test_it_is_loaded_by_the_core(self) -> None:
        from core.plugin_manager import PluginManager

        state = {each.name: each for each in PluginManager.discover().plugins}[self.plugin]
        assert state.state == "loaded", f"{self.plugin} is {state.state}: {state.error}"

    def test_there_is_a_readme(self) -> None:
        folders = [self.readme] if self.readme else list(Path(str(self.module.__file__)).parents)[:4]
        found = next((folder / "README.md" for folder in folders if (folder / "README.md").is_file()), None)
        assert found is not None, "there is no README.md"
        assert self.plugin in found.read_text(encoding="utf-8"), f"{found.name} does not name the plugin {self.plugin}"


def entry_point(plugin: str) -> EntryPoint:
    """The one installed entry point of this name."""
    found = entry_points(group=hookspecs.PROJECT, name=plugin)
    values = {entry.value for entry in found}
    assert values, f"no entry point {plugin!r} in group {hookspecs.PROJECT!r}: is the package installed?"
    assert len(values) == 1, f"two packages install a plugin {plugin!r}: {', '.join(sorted(values))}"
    return next(iter(found))


def plugin_module(plugin: str) -> ModuleType:
    """The module with the hooks of an installed plugin."""
    return importlib.import_module(entry_point(plugin).value)


def hooks_of(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """The functions of a module that are marked with ``@hookimpl``."""
    for name, value in vars(module).items():
        if getattr(value, f"{hookspecs.PROJECT}_impl", None) is not None:
            yield name, value


def offers_of(module: ModuleType) -> list[Offer]:
    return [offer for _, hook in hooks_of(module) for offer in hook()]


def kind_of(hook: str) -> type[Offer]:
    """The type of offer that a hook gives: what its annotation says."""
    returned = get_type_hints(getattr(hookspecs, hook), vars(offers) | vars(hookspecs))["return"]
    offer: type[Offer] = returned.__args__[0]
    return offer


def setting_names(offer: Offer) -> set[str]:
    from core.compose.settings import CoreSettings

    return set(CoreSettings.model_fields) | set(offer.settings.model_fields if offer.settings else ())
