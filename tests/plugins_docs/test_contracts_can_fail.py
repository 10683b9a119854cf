"""Each contract against implementations that are broken on purpose: every test of the kit has to catch at least one of them.

The files in ``broken/`` hold test classes that inherit a contract. A class with ``caught_by`` names the test that has to fail
for it; a class without has to pass, so that what fails fails for the mutation's sake.
"""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from core import testing

BROKEN = Path(__file__).parent / "broken"
CONTRACTS = {
    "block_policies": testing.BlockPolicyContract,
    "cache_policies": testing.CachePolicyContract,
    "checkpoint_formats": testing.CheckpointFormatContract,
    "compute_backends": testing.ComputeBackendContract,
    "draft_proposers": testing.DraftProposerContract,
    "front_ends": testing.FrontEndContract,
    "grammar_backends": testing.GrammarBackendContract,
    "graph_backends": testing.GraphBackendContract,
    "models": testing.ModelContract,
    "pages": testing.PageContract,
    "parallelisms": testing.ParallelismContract,
    "plugins": testing.PluginContract,
    "quantizers": testing.QuantizerContract,
    "reasoning_parsers": testing.ReasoningParserContract,
    "rules": testing.RulesContract,
    "samplers": testing.SamplerContract,
    "schedulers": testing.SchedulerContract,
    "tool_parsers": testing.ToolParserContract,
}


def mutants(file):
    """(class name, the test that has to catch it or None) of every collected class in a file."""
    for node in ast.parse((BROKEN / f"{file}.py").read_text()).body:
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            given = {
                target.id: item.value.value
                for item in node.body
                if isinstance(item, ast.Assign) and isinstance(item.value, ast.Constant)
                for target in item.targets
            }
            yield node.name, given.get("caught_by")


def together(file):
    """The files that run in one process with this one: each process imports a framework first."""
    files = list(CONTRACTS)
    first = files.index(file) // 6 * 6
    return tuple(files[first : first + 6])


@cache
def failures(files):
    """(file, class name) -> names of its tests that failed. Of a broken class only the test that has to catch it runs."""
    nodes = [
        f"{BROKEN / file}.py::{name}" + (f"::{caught_by}" if caught_by else "")
        for file in files
        for name, caught_by in mutants(file)
    ]
    options = ["-q", "-rA", "--tb=line", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=prepend"]
    command = [sys.executable, "-m", "pytest", *nodes, *options]
    run = subprocess.run(command, check=False, capture_output=True, text=True, cwd=BROKEN)
    found = {(file, name): set() for file in files for name, _ in mutants(file)}
    outcomes = r"^(PASSED|FAILED|ERROR) \S*?(\w+)\.py::(\w+)::(\w+)"
    for outcome, file, name, test in re.findall(outcomes, run.stdout, flags=re.MULTILINE):
        found[file, name] |= {test} if outcome != "PASSED" else {""}
    assert all(found.values()), run.stdout + run.stderr
    return found


@pytest.mark.parametrize(("file", "name", "caught_by"), [(file, *mutant) for file in CONTRACTS for mutant in mutants(file)])
def test_the_contract_catches(file, name, caught_by):
    failed = failures(together(file))[file, name] - {""}
    if caught_by is None:
        assert not failed, f"a sound implementation fails {failed}"
    else:
        assert caught_by in failed


@pytest.mark.parametrize("file", CONTRACTS)
def test_every_test_of_the_contract_catches_something(file):
    caught = {caught_by for _, caught_by in mutants(file)}
    idle = {name for name in CONTRACTS[file]._contract if name not in caught} - {"test_the_contract_is_whole"}
    assert not idle, f"no broken implementation is there for {sorted(idle)}"


def test_every_contract_is_here():
    kit = {getattr(testing, name) for name in testing.__all__} - {testing.Contract}
    assert kit == set(CONTRACTS.values())
