"""Every hook is documented with its exact signature, has an example that works, and gives what it says when it is called."""

import dataclasses
import importlib.util
import re
import sys
import textwrap
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import pytest
from pydantic import Field

from core import hookspecs, offers, testing
from core.compose.facts import CORE_FACTS
from core.interfaces import rules
from core.offers import Context
from core.plugin_manager import PluginManager
from core.testing.plugin import kind_of

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "plugins" / "hooks.md").read_text()
HOOKS = [name for name, value in vars(hookspecs).items() if hasattr(value, "dovetail_spec")]


def docs_build():
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def example(hook):
    """The literal block of a hook's docstring."""
    doc = getattr(hookspecs, hook).__doc__
    return textwrap.dedent(re.search(r"::\n\n((?:        .*\n|\n)+)", doc).group(1))


def plugin_of(hook):
    """The example as an installed plugin: a module, and the entry point that names it."""
    module = ModuleType(f"example_of_{hook}")
    known = {name: value for name, value in (vars(offers) | vars(rules)).items() if not name.startswith("__")}
    vars(module).update(known, hookimpl=hookspecs.hookimpl, Field=Field, __file__=__file__)
    exec(compile(example(hook), f"the example of {hook}", "exec"), vars(module))
    return module, EntryPoint(name=module.__name__, value=module.__name__, group="dovetail")


@pytest.fixture
def loaded(monkeypatch):
    """Hook -> the plugin manager's view of a plugin that is the hook's example."""

    def load(hook):
        module, entry_point = plugin_of(hook)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        (plugin,) = PluginManager.discover(entry_points=[entry_point]).plugins
        return plugin

    return load


def test_the_generated_pages_are_current(capsys):
    assert docs_build().main(["--check"]) == 0, capsys.readouterr().err


def test_a_page_that_is_not_current_is_noticed(tmp_path, monkeypatch, capsys):
    build = docs_build()
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "pages", lambda: {tmp_path / "page.md": "new\n"})
    (tmp_path / "page.md").write_text("old\n")
    assert build.main(["--check"]) == 1
    assert capsys.readouterr().err == "page.md is not what the code says: run `nox -s docs -- --write`\n"
    assert build.main(["--write"]) == 0
    assert (tmp_path / "page.md").read_text() == "new\n"
    assert build.main(["--check"]) == 0


def test_there_are_hooks():
    assert len(HOOKS) == 17


@pytest.mark.parametrize("hook", HOOKS)
def test_the_hook_is_documented_with_its_exact_signature(hook):
    returned = kind_of(hook).__name__
    assert f"\n## {hook}\n\n```python\ndef {hook}() -> Iterable[{returned}]\n```\n" in PAGE
    assert f"def {hook}() -> Iterable[{returned}]:" in Path(hookspecs.__file__).read_text()


@pytest.mark.parametrize("hook", HOOKS)
def test_the_reference_shows_the_example_and_every_field_of_the_offer(hook):
    section = PAGE.partition(f"\n## {hook}\n")[2].partition("\n## ")[0]
    assert example(hook).strip() in section
    for field in dataclasses.fields(kind_of(hook)):
        assert f"| `{field.name}` |" in section or f"| `{field.name}` |" in PAGE.partition("\n## ")[0]


@pytest.mark.parametrize("hook", HOOKS)
def test_the_hook_names_its_contract(hook):
    named = re.findall(r"core\.testing\.(\w+)", getattr(hookspecs, hook).__doc__)
    assert named
    assert all(hasattr(testing, name) for name in named)


@pytest.mark.parametrize("hook", HOOKS)
def test_the_example_is_a_plugin(hook, loaded):
    plugin = loaded(hook)
    assert (plugin.state, plugin.error) == ("loaded", "")
    (offer,) = plugin.offers
    assert type(offer) is kind_of(hook)


@pytest.mark.parametrize("hook", HOOKS)
def test_what_the_example_creates_gets_what_a_context_has(hook, loaded, monkeypatch):
    """Its ``create`` runs, with the packages it imports made up, and settings and facts that really exist."""
    for package, module in re.findall(r"from (\w+)\.(\w+) import", example(hook)):
        made_up = MagicMock()
        monkeypatch.setitem(sys.modules, package, made_up)
        monkeypatch.setitem(sys.modules, f"{package}.{module}", made_up)
    (offer,) = loaded(hook).offers
    create = getattr(offer, "create", None) or getattr(offer, "family", None)
    if hook in ("register_models", "register_checkpoint_formats"):
        assert create() is not None
    elif hook == "register_pages":
        assert offer.folder() is not None
    elif hook != "register_rules":
        from core.compose.settings import CoreSettings

        section = offer.settings() if isinstance(offer.settings, type) else MagicMock()
        facts = {fact.name: None for fact in CORE_FACTS}
        assert create(Context(section, CoreSettings().model_dump(), facts)) is not None


@pytest.mark.parametrize("hook", HOOKS)
def test_the_hook_is_exercised_by_a_plugin_or_by_its_example(hook, loaded):
    """The manager calls it and gets offers that the kind's name finds again."""
    kind = kind_of(hook).kind
    installed = PluginManager.discover().offers(kind)
    (offer,) = loaded(hook).offers
    assert offer.kind == kind
    assert all(isinstance(each.offer, kind_of(hook)) for each in installed)
    if hook not in ("register_quantizers", "register_rules"):
        assert installed, f"no default plugin uses {hook}"
