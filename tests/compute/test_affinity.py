"""Threads stay where they are told to, and nowhere unless they are told."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from core.compose import compose
from core.compose.build import load_model
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
        ("100000", 1, f"this process may not run on CPU 100000, only on {', '.join(map(str, sorted(OWN)))}"),
        (str(FIRST), 2, "2 threads are to stay on 1 CPUs"),
    ],
)
def test_cpus_that_are_not_there_are_refused(wanted, threads, what):
    with pytest.raises(UserError) as refused:
        in_a_thread(affinity.stay_on, wanted, threads)
    (problem,) = refused.value.problems
    assert (problem.what, problem.where) == (what, "backend_torch.cpu_affinity")


def test_where_threads_cannot_be_bound_it_is_a_rule_that_says_so(monkeypatch):
    monkeypatch.delattr(os, "sched_setaffinity")
    assert sys.platform == "linux"
    with pytest.raises(UserError) as refused:
        compose([*TINY, "--cpu-affinity", "auto"])
    (problem,) = refused.value.problems
    assert problem.what == "threads are bound to CPUs on Linux only"
    assert problem.remedies == ("leave out --cpu-affinity",)
