"""The tutorial, followed word by word: its files are written, its tests run, its commands are given."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from core import testing

ROOT = Path(__file__).parents[2]
TUTORIAL = (ROOT / "docs" / "plugins" / "tutorial.md").read_text()
FILES = dict(re.findall(r"^\*\*`([^`]+)`\*\*\n\n```\w+\n(.*?)^```$", TUTORIAL, flags=re.MULTILINE | re.DOTALL))
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", TUTORIAL, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The tutorial's folder, with the metadata that `pip install -e .` would write, and the environment to run things in."""
    folder = tmp_path_factory.mktemp("dovetail-sampler-epsilon")
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    project = tomllib.loads(FILES["pyproject.toml"])["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = project["entry-points"]["dovetail"].items()
    (info / "entry_points.txt").write_text("[dovetail]\n" + "".join(f"{name} = {value}\n" for name, value in points))
    return folder


def run(package, *command, **more):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package), str(ROOT), str(ROOT / "plugins")]), **more}
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=package, env=environment)


def test_the_files_are_those_of_a_package():
    assert list(FILES) == [
        "pyproject.toml",
        "sampler_epsilon/__init__.py",
        "sampler_epsilon/plugin.py",
        "sampler_epsilon/sample.py",
        "tests/test_epsilon.py",
        "README.md",
    ]
    project = tomllib.loads(FILES["pyproject.toml"])
    assert project["project"]["entry-points"]["dovetail"] == {"sampler_epsilon": "sampler_epsilon.plugin"}
    assert project["tool"]["setuptools"]["packages"] == ["sampler_epsilon"]


def test_its_tests_pass(package):
    tests = run(package, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error")
    assert tests.returncode == 0, tests.stdout + tests.stderr
    passed = int(re.search(r"(\d+) passed", tests.stdout).group(1))
    assert 45 <= passed <= 75, "the tutorial says some fifty"


def test_its_departure_is_one_that_can_be_declared():
    (block,) = re.findall(r"    xfail = (\{.*\})", TUTORIAL)
    assert set(eval(block)) <= set(testing.SamplerContract._contract)


def test_the_commands_are_those_tested_here():
    """A command added to the tutorial is added here, and to a test below."""
    assert [command for command in COMMANDS if "core.serve" in command] == [
        "python -m core.serve --list-plugins",
        "python -m core.serve --plugins sampler_epsilon --model demo --explain",
        "python -m core.serve --plugins sampler_epsilon --model demo",
        "python -m core.serve --plugins sampler_epsilon --sampler-epsilon-epsilon 0.7",
    ]


def served(package, command):
    """A command of the tutorial, with seeded random weights in the place of the demo model."""
    words = shlex.split(command.replace("--model demo", "--model random:tiny"))
    return run(package, sys.executable, *words[1:])


def test_the_plugin_is_listed(package):
    shown = served(package, COMMANDS_OF["--list-plugins"])
    assert shown.returncode == 0, shown.stderr
    assert "sampler_epsilon" in shown.stdout
    assert "dovetail-sampler-epsilon 0.1.0" in shown.stdout


def test_explain_shows_the_choice_and_the_setting(package):
    shown = served(package, COMMANDS_OF["--explain"])
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"sampler\W+epsilon\b.*--plugins", shown.stdout)
    assert re.search(r"settings of sampler_epsilon\n +epsilon +0\.0009", shown.stdout)


def test_the_rule_refuses_as_the_reader_is_told(package):
    refused = served(package, COMMANDS_OF["0.7"] + " --model random:tiny")
    assert refused.returncode == 2
    assert "with epsilon 0.7 at most two tokens are ever left to draw from: that is greedy decoding" in refused.stderr
    assert "--sampler-epsilon-epsilon 0.0009" in refused.stderr


COMMANDS_OF = {command.split()[-1]: command for command in COMMANDS if "core.serve" in command}


def test_every_kind_of_offer_has_its_line():
    table = TUTORIAL.partition("## Other kinds")[2]
    from core import hookspecs

    for name, hook in vars(hookspecs).items():
        if hasattr(hook, "dovetail_spec"):
            (contract,) = re.findall(r"core\.testing\.(\w+Contract)", hook.__doc__)
            interface = r"a folder of files" if name == "register_pages" else r"`core\.interfaces\.\w+\.\w+`"
            assert re.search(rf"\| `{name}` \| {interface} \| `{contract}` \|", table)
