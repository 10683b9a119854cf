"""The lists that have to name every plugin and every session do."""

import ast
import configparser
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ENTRY_POINTS = PROJECT["project"]["entry-points"]["dovetail"]
PLUGINS = {folder.name for folder in (ROOT / "plugins").iterdir() if (folder / "plugin.py").is_file()}


def contracts():
    parser = configparser.ConfigParser()
    parser.read(ROOT / ".importlinter")
    return parser


def words(parser, section, key):
    return set(parser[section][key].split())


def test_every_plugin_folder_is_installed():
    assert {ENTRY_POINTS.get(name) for name in PLUGINS} == {f"{name}.plugin" for name in PLUGINS}
    assert {name for name in PROJECT["tool"]["setuptools"]["package-dir"] if name} == PLUGINS


def test_every_plugin_is_held_to_the_import_contracts():
    parser = contracts()
    assert words(parser, "importlinter", "root_packages") == {"core", "frontends", *PLUGINS}
    for name, key in {
        "importlinter:contract:plugins": "source_modules",
        "importlinter:contract:pluggy": "source_modules",
        "importlinter:contract:nobody-imports-a-plugin": "forbidden_modules",
        "importlinter:contract:independence": "modules",
    }.items():
        assert words(parser, name, key) >= PLUGINS, f"{name} leaves a plugin out"


def test_every_room_is_held_to_the_contract_about_pluggy():
    rooms = {path.stem for path in (ROOT / "core").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    knowing = {"__init__", "errors", "hookspecs", "plugin_manager", "suggest"}
    assert words(contracts(), "importlinter:contract:pluggy", "source_modules") >= {f"core.{room}" for room in rooms - knowing}


def test_a_broken_contract_is_found(tmp_path):
    """The contract about plugins, over a plugin that reaches into the engine."""
    for package in ("core", "core/engine", "greedy"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    (tmp_path / "greedy" / "plugin.py").write_text("def create():\n    import core.engine\n")
    parser = contracts()
    section = "importlinter:contract:plugins"
    parser["importlinter"]["root_packages"] = "core\ngreedy"
    parser[section].update({"source_modules": "greedy", "forbidden_modules": "core.engine"})
    for other in parser.sections():
        if other.startswith("importlinter:") and other != section:
            parser.remove_section(other)
    with (tmp_path / ".importlinter").open("w") as file:
        parser.write(file)
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache"]
    run = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1, run.stdout + run.stderr
    assert "greedy.plugin -> core.engine" in run.stdout


def sessions():
    for node in ast.parse((ROOT / "noxfile.py").read_text()).body:
        if isinstance(node, ast.FunctionDef) and any("session" in ast.unparse(each) for each in node.decorator_list):
            yield node.name


def test_the_sessions_are_those_that_are_documented():
    known = "bench docs fuzz gpu imports lint paddle serve site tests third_party types web"
    assert set(sessions()) == set(known.split())
    for name in ("README.md", "CONTRIBUTING.md", ".ci/run"):
        text = (ROOT / name).read_text()
        for given in re.findall(r"nox -s ((?:[a-z_]+ ?)+)", text):
            assert set(given.split()) <= set(sessions()), f"{name}: nox -s {given}"


def test_the_guide_lists_every_plugin():
    guide = (ROOT / "docs" / "plugins" / "README.md").read_text()
    for name in ENTRY_POINTS:
        assert f"| `{name}` |" in guide


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs" / "plugins").glob("*.md")))
def test_links_of_the_pages_lead_somewhere(page):
    folder = ROOT / "docs" / "plugins"
    for target in (folder / page).read_text().split("](")[1:]:
        path = target.partition(")")[0].partition("#")[0]
        if path and "://" not in path:
            assert (folder / path).exists(), f"{page} links to {path}"


def test_ci_runs_what_the_readme_says():
    script = (ROOT / ".ci" / "run").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    run = {session for given in re.findall(r"nox -s ((?:[a-z_]+ ?)+)", script) for session in given.split()}
    assert run >= {"lint", "types", "imports", "third_party", "tests", "site"}
    assert "nox -s tests" in (ROOT / "README.md").read_text()
