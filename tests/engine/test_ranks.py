"""The processes of a shared model: loaded together, told the same, and missed when one is gone."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from core.engine.ranks import NOT_SAMPLED, OtherRanks, PagesOfAllRanks, SplitRunner
from core.errors import EngineDeadError, UserError
from core.interfaces.compute import StepBatch
from tests.engine.fake_rank import Cache, Direct, Meeting, Setup, build

ROOT = Path(__file__).parents[2]


@pytest.fixture
def start(tmp_path):
    started = []

    def begin(ranks=3, **setup):
        others = OtherRanks(build, Setup(str(tmp_path), **setup), ranks)
        started.append(others)
        return others

    yield begin
    for others in started:
        others.close()
        assert not any(lives(pid) for pid in others.pids)
        assert not os.path.exists(others.folder)


def running(others):
    assert others.agree(200) == 200 - 100 - others.ranks + 1, "the last rank has room for the fewest pages"
    others.wait_begun()
    return others


def lives(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def batch(tokens):
    ints = np.array(tokens, np.int32)
    none = np.zeros(0, np.int32)
    return StepBatch(ints, ints, ints.astype(np.int64), none, none, none[None], none.astype(np.int64), 0, NOT_SAMPLED)


def until(true, seconds=20):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def lines(folder, rank):
    path = folder / f"rank{rank}"
    return path.read_text().splitlines() if path.exists() else []


def test_all_begin_with_the_pages_that_everyone_has_room_for_and_run_every_step(start, tmp_path):
    others = running(start())
    others.tell(batch([1, 2]))
    others.tell(batch([3]))
    for rank in (1, 2):
        until(lambda rank=rank: len(lines(tmp_path, rank)) == 4)
        assert lines(tmp_path, rank) == ["meet", "kv 98 16", "step [1, 2] 0", "step [3] 0"]
    others.check()


def test_fewer_pages_of_rank_0_are_everyones(start, tmp_path):
    others = start(ranks=2)
    assert others.agree(7) == 7
    others.wait_begun()
    assert lines(tmp_path, 1) == ["meet", "kv 7 16"]


def test_what_a_user_can_mend_is_told_as_it_is(start):
    with pytest.raises(UserError) as refused:
        start(breaks=2, how="user error").agree(10)
    assert str(refused.value) == "there is not enough memory for the weights\n  remedy: take a smaller model"


def test_a_rank_that_breaks_while_it_loads_is_named(start, caplog):
    with pytest.raises(EngineDeadError) as dead:
        start(breaks=1, how="crash").agree(10)
    assert str(dead.value) == "rank 1 broke: ZeroDivisionError: the builder broke"
    assert "rank 1's traceback" in caplog.text


def test_a_rank_that_dies_while_it_loads_is_named(start):
    others = start(breaks=2, how="die")
    with pytest.raises(EngineDeadError) as dead:
        others.agree(10)
    assert str(dead.value) == f"rank 2, the process {others.pids[1]}, was ended by SIGKILL (out of memory?)"


def test_a_rank_that_fails_in_a_step_tells_why(start):
    others = running(start(breaks=1, how="fail"))
    others.tell(batch([1]))
    error = others.lost(RuntimeError("connection reset"))
    assert (type(error), str(error)) == (EngineDeadError, "rank 1 broke: ArithmeticError: bad numbers")


def test_a_rank_that_only_lost_the_others_is_not_blamed(start):
    """It waits to be ended, so that the one that is gone is the one that is named."""
    others = running(start(breaks=1, how="leave"))
    others.tell(batch([1]))
    os.kill(others.pids[1], signal.SIGKILL)
    assert str(others.lost(None)) == f"rank 2, the process {others.pids[1]}, was ended by SIGKILL (out of memory?)"


def test_ranks_that_are_all_there_are_out_of_step(start, monkeypatch):
    monkeypatch.setattr("core.engine.ranks.DYING_SECONDS", 0.0)
    others = running(start(ranks=2))
    assert str(others.lost(ValueError("shapes differ"))) == "the ranks are out of step: shapes differ"
    error = EngineDeadError("rank 0 lost the others")
    assert others.lost(error) is error


def test_a_rank_that_dies_while_nothing_is_done_is_noticed(start, tmp_path):
    others = running(start(ranks=2))
    aborted = threading.Event()
    others.collective = Meeting(tmp_path / "rank0")
    others.collective.abort = aborted.set
    others.check()
    os.kill(others.pids[0], signal.SIGKILL)
    assert aborted.wait(10), "nobody told the collective, which may be waiting for that rank"
    with pytest.raises(EngineDeadError, match="was ended by SIGKILL"):
        others.check()
    with pytest.raises(EngineDeadError, match="was ended by SIGKILL"):
        others.tell(batch(list(range(100_000))))


def test_pages_are_copied_on_every_rank(start, tmp_path):
    others = running(start())
    kv = PagesOfAllRanks(Cache(tmp_path / "rank0"), others)
    assert (kv.num_pages, kv.page_size, kv.nbytes) == (100, 16, 4800)
    host = kv.host_pages(9)
    assert host.number == 9
    pages, places = np.array([3, 5], np.int32), np.array([0, 8], np.int32)
    first, second = host.save(pages, places), host.restore(places, pages)
    for rank in (0, 1):
        (tmp_path / f"rank{rank}.may").touch()
    assert not first.done(), "rank 2 has not copied anything"
    (tmp_path / "rank2.may").touch()
    first.wait()
    second.wait()
    assert first.done()
    assert second.done()
    for rank in (1, 2):
        assert lines(tmp_path, rank)[2:] == ["save [3, 5] [0, 8]", "restore [0, 8] [3, 5]"]


def test_a_copy_that_a_lost_rank_was_to_make_is_an_error(start, tmp_path):
    others = running(start(ranks=2))
    (tmp_path / "rank0.may").touch()
    saving = PagesOfAllRanks(Cache(tmp_path / "rank0"), others).host_pages(1).save(np.zeros(1, np.int32), np.zeros(1, np.int32))
    os.kill(others.pids[0], signal.SIGKILL)
    with pytest.raises(EngineDeadError, match="was ended by SIGKILL"):
        saving.wait()


def test_ctrl_c_waits_until_a_step_is_through(start, tmp_path):
    """Else the others would be in another step than rank 0, for ever."""
    others = running(start(ranks=2))
    done = []

    def forward(step, kv):
        signal.raise_signal(signal.SIGINT)
        done.append(step)

    nowhere = {"device": "cpu", "sampling": lambda step: None, "close": lambda: None}
    backend = SimpleNamespace(upload=lambda batch, spec, kv: batch, **nowhere)
    decoder = SimpleNamespace(backend=backend, spec=None, forward=forward)
    runner = SplitRunner(decoder, None, SimpleNamespace(on_device=lambda device: None), Direct(), others)
    usual = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        runner.launch(batch([4]))
    assert len(done) == 1
    assert signal.getsignal(signal.SIGINT) is usual
    until(lambda: lines(tmp_path, 1)[-1] == "step [4] 0")
    runner.check()


PARENT = """
import pickle, sys, time
from core.engine.ranks import OtherRanks
build, setup = pickle.loads(bytes.fromhex(sys.argv[1]))
others = OtherRanks(build, setup, 3)
others.agree(10)
others.wait_begun()
print(*others.pids, others.folder, flush=True)
time.sleep(600)
"""


def test_ranks_end_with_rank_0_however_it_ends(tmp_path):
    argument = pickle.dumps((build, Setup(str(tmp_path)))).hex()
    parent = subprocess.Popen([sys.executable, "-c", PARENT, argument], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with parent:
        *pids, folder = parent.stdout.readline().split()
        assert all(lives(int(pid)) for pid in pids)
        parent.kill()
    until(lambda: not any(lives(int(pid)) for pid in pids))
    until(lambda: not os.path.exists(folder))
