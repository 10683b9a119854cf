"""The kit itself: what it imports, and that its tests cannot be overridden quietly."""

import re
import subprocess
import sys

import numpy as np
import pytest

from core import testing
from core.testing import Contract, SchedulerContract, reference
from core.testing.inputs import PagedSequences, tiny_spec
from core.testing.sampler import chi_square, chi_square_tail


class Example(Contract, kit=True):
    def test_one(self):
        assert self.value == 1

    @pytest.mark.parametrize("number", [1, 2])
    def test_two(self, number):
        assert self.value <= number


class Longer(Example, kit=True):
    def test_three(self):
        assert self.value


# --- what a subclass may not do ---------------------------------------------------------------------------------------


def test_a_redefined_test_is_refused():
    with pytest.raises(TypeError) as refused:
        type("TestMine", (Example,), {"test_one": lambda self: None})
    assert str(refused.value) == (
        "TestMine redefines test_one, a test of its contract: leave it, or declare the departure: "
        'xfail = {"test_one": "why it cannot hold"}'
    )


def test_a_removed_test_is_refused():
    with pytest.raises(TypeError, match="TestMine removes test_two, a test of its contract"):
        type("TestMine", (Longer,), {"test_two": None})


def test_a_test_overridden_by_another_base_is_refused():
    quiet = type("Quiet", (), {"test_one": lambda self: None})
    with pytest.raises(TypeError, match="TestMine redefines test_one"):
        type("TestMine", (quiet, Example), {})


def test_the_meta_test_itself_cannot_be_overridden():
    with pytest.raises(TypeError, match="TestMine redefines test_the_contract_is_whole"):
        type("TestMine", (Example,), {"test_the_contract_is_whole": lambda self: None})


def test_every_breach_is_named_at_once():
    with pytest.raises(TypeError) as refused:
        type("TestMine", (Longer,), {"test_one": None, "test_three": None})
    assert len(str(refused.value).splitlines()) == 2


def test_a_test_replaced_later_fails_the_meta_test():
    mine = type("TestMine", (Example,), {"value": 1})
    mine().test_the_contract_is_whole()
    mine.test_one = lambda self: None
    with pytest.raises(AssertionError, match="TestMine redefines test_one"):
        mine().test_the_contract_is_whole()


def test_an_expected_failure_needs_a_reason_and_a_test():
    with pytest.raises(TypeError, match="expects test_one to fail without a reason"):
        type("TestMine", (Example,), {"xfail": {"test_one": " "}})
    with pytest.raises(TypeError, match="expects test_four to fail, but its contract has no such test"):
        type("TestMine", (Example,), {"xfail": {"test_four": "it is not there"}})


def test_an_expected_failure_does_not_excuse_a_redefinition():
    with pytest.raises(TypeError, match="TestMine redefines test_one"):
        type("TestMine", (Example,), {"xfail": {"test_one": "it is hard"}, "test_one": lambda self: None})


# --- what it may ------------------------------------------------------------------------------------------------------


def test_own_tests_and_their_overriding_are_nobodys_affair():
    mine = type("TestMine", (Example,), {"test_mine": lambda self: None, "helper": 1})
    type("TestMore", (mine,), {"test_mine": lambda self: None, "helper": 2})


def test_an_expected_failure_marks_this_class_only():
    mine = type("TestMine", (Example,), {"xfail": {"test_two": "it counts from three"}})
    (_, mark) = mine.test_two.pytestmark
    assert (mark.name, mark.kwargs) == ("xfail", {"reason": "it counts from three", "strict": True})
    assert [mark.name for mark in Example.test_two.pytestmark] == ["parametrize"]
    again = type("TestAgain", (mine,), {"xfail": {}})
    assert again.test_two is Example.test_two
    assert type("TestHeir", (mine,), {}).test_two is not Example.test_two


def test_expected_failures_run_and_are_strict(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "from core.testing import SchedulerContract\n"
        "from core.interfaces.scheduler import SchedulingPolicy\n"
        "class Late(SchedulingPolicy):\n"
        "    def order(self, request): return (-request.priority,)\n"
        "    def grant(self, remaining, budget): return min(remaining, budget.left)\n"
        "class TestDeclared(SchedulerContract):\n"
        "    splits_prompts = True\n"
        "    xfail = {'test_a_lower_priority_number_runs_earlier': 'priorities are upside down here'}\n"
        "    def make(self): return Late()\n"
        "class TestUndeclared(SchedulerContract):\n"
        "    splits_prompts = True\n"
        "    def make(self): return Late()\n"
        "class TestWronglyDeclared(SchedulerContract):\n"
        "    splits_prompts = True\n"
        "    xfail = {'test_order_is_a_sort_key': 'it is one', 'test_a_lower_priority_number_runs_earlier': 'upside down'}\n"
        "    def make(self): return Late()\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
    )
    failed = re.findall(r"^FAILED \S+::(\w+::\w+)", run.stdout, flags=re.MULTILINE)
    assert sorted(failed) == [
        "TestUndeclared::test_a_lower_priority_number_runs_earlier",
        "TestWronglyDeclared::test_order_is_a_sort_key",
    ]
    assert re.search(
        r"XFAIL .*TestDeclared::test_a_lower_priority_number_runs_earlier - priorities are upside down here", run.stdout
    )


@pytest.mark.parametrize("name", [name for name in testing.__all__ if name != "Contract"])
def test_every_contract_says_what_to_give(name):
    contract = getattr(testing, name)
    assert issubclass(contract, Contract)
    assert "Give ``" in contract.__doc__
    assert len(contract._contract) > 3


# --- what it imports --------------------------------------------------------------------------------------------------


def test_the_kit_imports_no_framework():
    code = "import core.testing, sys; sys.exit(', '.join({'torch', 'paddle', 'triton', 'fastapi'} & set(sys.modules)) or None)"
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (run.returncode, run.stderr.strip()) == (0, "")


def test_without_pytest_it_says_what_to_install():
    code = "import sys; sys.modules['pytest'] = None; import core.testing"
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: core.testing needs pytest: pip install 'dovetail-serve[dev]', or pip install pytest"
    )


def test_make_that_is_missing_is_named():
    mine = type("TestMine", (SchedulerContract,), {"splits_prompts": True})
    with pytest.raises(NotImplementedError, match=r"TestMine must define make\(\)"):
        mine().test_grants_stay_within_the_budget()


# --- its arithmetic ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statistic", "freedom", "expected"),
    [
        (3.841459, 1, 0.05),
        (5.991465, 2, 0.05),
        (18.307038, 10, 0.05),
        (135.807, 100, 0.01),
        (0.0, 3, 1.0),
        (30.664850, 7, 7.2e-5),
    ],
)
def test_the_chi_square_tail(statistic, freedom, expected):
    assert chi_square_tail(statistic, freedom) == pytest.approx(expected, rel=2e-2)


def test_chi_square_tells_a_fair_die_from_a_loaded_one():
    expected = np.full(6, 1000.0)
    assert chi_square(np.array([1003, 980, 1012, 1020, 975, 1010]), expected) > 0.5
    assert chi_square(np.array([900, 1000, 1000, 1000, 1000, 1100]), expected) < 1e-2
    assert chi_square(np.array([700, 1000, 1000, 1000, 1000, 1300]), expected) < 1e-30


def test_rare_tokens_are_pooled():
    expected = np.array([1000.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    assert chi_square(np.array([1000, 5, 0, 0, 0, 0, 0]), expected) == pytest.approx(1.0)
    assert chi_square(np.array([965, 40, 0, 0, 0, 0, 0]), expected) < 1e-20


def test_the_reference_rotates_by_position_only():
    """Dot products of turned vectors depend on the distance of their positions, in both styles."""
    random = np.random.default_rng(0)
    for style in ("interleaved", "half"):
        spec = tiny_spec(rope_style=style)
        q, k = random.standard_normal((2, 1, 1, spec.head_dim))
        products = [
            (reference.rotate(q, np.array([p + 3]), spec) * reference.rotate(k, np.array([p]), spec)).sum() for p in (0, 5, 100)
        ]
        assert products == pytest.approx([products[0]] * 3)


def test_paged_sequences_give_steps_as_the_engine_does():
    paged = PagedSequences(8, 4)
    first = paged.step({7: [1, 2, 3, 4, 5], 8: [6]})
    assert (first.num_decodes, first.num_sequences, first.num_tokens) == (0, 2, 6)
    assert first.page_table.shape == (2, 2)
    assert first.page_table[1, 1] == 0, "padding"
    second = paged.step({9: [1, 2], 7: [3]})
    assert paged.order == [7, 9]
    assert second.num_decodes == 1
    assert second.positions.tolist() == [5, 0, 1]
    assert second.context_lens.tolist() == [6, 2]
    assert second.slots[0] == first.page_table[0, 1] * 4 + 1
    assert second.logit_rows.tolist() == [0, 2]
