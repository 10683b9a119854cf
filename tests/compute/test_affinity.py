"""Threads stay where they are told to, and nowhere unless they are told."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from core.compose import compose
from core.compose.build import load_model
from core.compose.probe import DeviceProbe
from core.compute.torch_backend import affinity
from core.errors import UserError

OWN = os.sched_getaffinity(0)
FIRST = min(OWN)
TINY = ["--model", "random:tiny", "--threads", "1"]


def in_a_thread(function, *arguments):
    """Of its own, which may be bound without harm to the others."""
    with ThreadPoolExecutor(1) as alone:
        return alone.submit(function, *arguments).result()


def test_a_list_of_cpus():
    assert affinity.cpus("0-3,8, 10") == {0, 1, 2, 3, 8, 10}
    assert affinity.listed({10, 8, 3, 0, 2, 1}) == "0-3,8,10"
    for text in ("", "3-1", "a", "1,", "-1"):
        with pytest.raises(ValueError, match="is neither auto nor a list of CPUs such as 0-3,8"):
            affinity.cpus(text)


@pytest.mark.parametrize(("wanted", "found"), [(str(FIRST), {FIRST}), ("auto", None), (None, OWN)])
def test_the_engine_s_threads_stay_where_they_are_told_to(wanted, found):
    def loaded():
        load_model(compose([*TINY, *([] if wanted is None else ["--cpu-affinity", wanted])]))
        return os.sched_getaffinity(0)

    bound, threads = in_a_thread(loaded), torch.get_num_threads()
    assert threads == 1
    assert bound == found if found else FIRST in bound <= OWN


@pytest.mark.parametrize(
    ("wanted", "threads", "what"),
    [
        ("100000", 1, f"this process may not run on CPU 100000, only on {affinity.listed(OWN)}"),
        (str(FIRST), 2, "2 threads are to stay on 1 CPUs"),
    ],
)
def test_cpus_that_are_not_there_are_refused(wanted, threads, what):
    with pytest.raises(UserError) as refused:
        in_a_thread(affinity.stay_on, wanted, threads)
    (problem,) = refused.value.problems
    assert (problem.what, problem.where) == (what, "backend_torch.cpu_affinity")


def test_it_is_a_rule_that_refuses_them_before_anything_is_loaded():
    """And what it gives as remedies is taken."""

    def refused(*flags):
        with pytest.raises(UserError) as error:
            compose(["--model", "random:tiny", *flags])
        (problem,) = error.value.problems
        return problem

    foreign = refused("--cpu-affinity", "100000-100001")
    assert foreign.what == f"this process may not run on CPU 100000-100001, only on {affinity.listed(OWN)}"
    assert foreign.where == "--cpu-affinity"
    assert foreign.remedies == ("--cpu-affinity auto", f"--cpu-affinity {affinity.listed(OWN)}")
    narrow = refused("--threads", "2", "--cpu-affinity", str(FIRST))
    assert narrow.what == "2 threads are to stay on 1 CPUs"
    assert narrow.where == "--threads, --cpu-affinity"
    for remedy in (*foreign.remedies, f"--cpu-affinity {FIRST} {narrow.remedies[0]}"):
        assert compose(["--model", "random:tiny", *remedy.split()])


def test_threads_that_nobody_counted_are_as_many_as_the_cores_they_stay_on(monkeypatch):
    probe = DeviceProbe("", 4, (), 16 << 30, 12 << 30)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: frozenset(range(8)))
    monkeypatch.setattr("core.host._siblings", lambda cpu: str(cpu // 2))  # two CPUs a core
    for wanted, threads in (("0-3", 2), ("0,2,4", 3), ("5", 1), ("0-7", 4), ("auto", 4)):
        plan = compose(["--model", "random:tiny", "--cpu-affinity", wanted], env={}, probe=probe)
        assert (plan.settings["threads"], plan.origins["threads"]) == (threads, "auto")
    assert plan.reasons["threads"] == "one for each physical core this process may use"
    plan = compose(["--model", "random:tiny", "--cpu-affinity", "0-3"], env={}, probe=probe)
    assert plan.reasons["threads"] == "one for each physical core that the settings of torch leave to it"


def test_where_threads_cannot_be_bound_it_is_a_rule_that_says_so(monkeypatch):
    monkeypatch.delattr(os, "sched_setaffinity")
    assert sys.platform == "linux"
    with pytest.raises(UserError) as refused:
        compose([*TINY, "--cpu-affinity", "auto"])
    (problem,) = refused.value.problems
    assert problem.what == "threads are bound to CPUs on Linux only"
    assert problem.remedies == ("leave out --cpu-affinity",)
