"""The engine in a process of its own: requests over the socket, and every way in which one side may end."""

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from core.engine import server, watchdog, wire
from core.engine.client import EngineClient
from core.engine.interpreter import Interpreter
from core.engine.process import EngineProcess
from core.engine.watchdog import FIRST_STEPS
from core.errors import EngineDeadError, ExitCode, Problem, RequestError, UserError
from core.interfaces.request import Request, SamplingParams
from tests.service import fake_engine
from tests.service.fake_engine import BLOCKS, BREAKS, CLUMSY, DIES, HOLDS, REFUSED, FakeEngine, NotPickledBack, Setup

NOTICED_WITHIN = 2.0


@pytest.fixture(autouse=True)
def nothing_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = set(psutil.Process().children(recursive=True))
    yield
    assert set(psutil.Process().children(recursive=True)) <= before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("dovetail-")] == []


@contextlib.contextmanager
def engine(restarts=0, step_timeout=0, **setup):
    client = EngineClient(fake_engine.build, Setup(**setup), restarts=restarts, step_timeout=step_timeout)
    client.start()
    try:
        client.wait_ready()
        yield client
    finally:
        client.close()


def request(request_id="r", prompt=(5,), **params):
    return Request(request_id=request_id, prompt_token_ids=list(prompt), params=SamplingParams(**params))


async def collect(stream):
    tokens, reason = [], None
    async for _, event in stream:
        tokens += event.token_ids
        reason = event.finish_reason
    return tokens, reason


async def until(condition):
    while not await condition():
        await asyncio.sleep(0.005)


def test_tokens_of_a_request_arrive_in_order_and_end():
    with engine() as client:

        async def run():
            return await collect(client.submit([request(prompt=[1, 10], max_tokens=4)]))

        assert asyncio.run(run()) == ([11, 12, 13, 14], "length")


def test_the_sockets_are_private_and_nowhere_to_be_found_once_connected(monkeypatch):
    """The folder is elsewhere where the usual one's name is too long for a socket's."""
    folders, modes = [], []
    make, start = tempfile.mkdtemp, subprocess.Popen

    def making(*args, **kwargs):
        folders.append(Path(make(*args, **kwargs)))
        return str(folders[-1])

    def starting(*args, **kwargs):
        modes.append((folders[-1].stat().st_mode & 0o777, sorted(each.name for each in folders[-1].iterdir())))
        return start(*args, **kwargs)

    monkeypatch.setattr(tempfile, "mkdtemp", making)
    monkeypatch.setattr(subprocess, "Popen", starting)
    client = EngineClient(fake_engine.build, Setup(build="block"))
    client.start()
    client.close()
    assert modes == [(0o700, ["from_engine", "to_engine"])]
    with engine():
        assert not any(folder.exists() for folder in folders)
    assert len(folders) >= 2


def test_an_interpreter_started_before_it_is_known_what_it_runs_becomes_the_engine():
    with Interpreter() as interpreter:
        interpreter.expect(["no_such_module", "tests.service.fake_engine"])
        client = EngineClient(fake_engine.build, Setup(), interpreter=interpreter)
        client.start()
        client.wait_ready()
        assert client.pid == interpreter.child.pid
        client.close()
    assert interpreter.child.returncode == 0


def test_an_interpreter_that_nothing_is_run_in_ends_with_the_block_and_with_its_parent():
    with Interpreter() as interpreter:
        pass
    assert interpreter.child.returncode == -signal.SIGKILL
    with Interpreter() as interpreter:
        interpreter.cut_lifeline()
        assert interpreter.child.wait(NOTICED_WITHIN) == 0


def test_a_hundred_requests_at_once_each_get_their_own_tokens():
    with engine() as client:

        async def run():
            streams = [client.submit([request(f"r{i}", [i], max_tokens=20 + i % 7)]) for i in range(100)]
            return await asyncio.gather(*map(collect, streams))

        for i, (tokens, reason) in enumerate(asyncio.run(run())):
            assert tokens == list(range(i + 1, i + 21 + i % 7))
            assert reason == "length"


def test_requests_submitted_together_are_told_apart_by_number():
    with engine() as client:

        async def run():
            found = {0: [], 1: []}
            async for number, event in client.submit([request("a", [1], max_tokens=2), request("b", [50], max_tokens=3)]):
                found[number] += event.token_ids
            return found

        assert asyncio.run(run()) == {0: [2, 3], 1: [51, 52, 53]}


def test_abort_ends_the_stream_and_the_request_in_the_engine():
    with engine(step_seconds=0.001) as client:

        async def run():
            stream = client.submit([request(max_tokens=None)])
            await anext(stream)
            stream.abort()
            _, reason = await collect(stream)
            stats = await client.stats()
            return reason, stats.num_running, stats.requests_finished

        assert asyncio.run(run()) == ("abort", 0, {"abort": 1})


def test_closing_a_stream_ends_its_requests_in_the_engine():
    with engine(step_seconds=0.001) as client:

        async def run():
            stream = client.submit([request("a", max_tokens=None), request("b", max_tokens=None)])
            await anext(stream)
            stream.close()
            rest = await collect(stream)
            return (await client.stats()).num_running, rest

        running, (tokens, reason) = asyncio.run(run())
        assert running == 0
        assert reason is None
        assert len(tokens) <= 1000


def test_a_dropped_request_is_silent_while_its_mate_goes_on():
    with engine(step_seconds=0.001) as client:

        async def run():
            stream = client.submit([request("a", max_tokens=None), request("b", [50], max_tokens=30)])
            await anext(stream)
            stream.drop(0)
            seen = [(number, event.finish_reason) async for number, event in stream]
            return seen, (await client.stats()).num_running

        seen, running = asyncio.run(run())
        assert {number for number, _ in seen} == {1}
        assert seen[-1] == (1, "length")
        assert running == 0


def test_a_reading_that_is_cancelled_ends_in_the_engine(monkeypatch):
    with engine() as client:
        sent = []
        monkeypatch.setattr(client._life, "send", lambda message: sent.append(message) or True)

        async def run():
            reading = asyncio.ensure_future(client.score([1, 2, 3], 0))
            await asyncio.sleep(0)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading

        asyncio.run(run())
        monkeypatch.undo()
    [submit, abort] = sent
    assert abort.request_ids == [submit.requests[0].request_id]


def test_an_id_can_be_used_again_at_once_after_an_abort():
    with engine(step_seconds=0.005) as client:

        async def run():
            first = client.submit([request("same", [100], max_tokens=None)])
            await anext(first)
            first.close()
            return await collect(client.submit([request("same", [1], max_tokens=3)]))

        assert asyncio.run(run()) == ([2, 3, 4], "length")


def test_what_the_engine_refuses_is_raised_with_all_its_fields():
    with engine(max_waiting=1, step_seconds=0.001) as client:

        async def run():
            running = client.submit([request("a", max_tokens=None)])
            await anext(running)
            with pytest.raises(RequestError) as full:
                await collect(client.submit([request("b")]))
            running.close()
            with pytest.raises(RequestError) as refused:
                await collect(client.submit([request("c", [REFUSED])]))
            return full.value, refused.value

        full, refused = asyncio.run(run())
    assert (full.message, full.code, full.status) == ("the queue is full: try again later", "queue_full", 429)
    assert (refused.message, refused.param, refused.code, refused.status) == ("nobody wants this", "prompt", "refused", 400)


def test_requests_submitted_together_are_refused_together():
    with engine() as client:

        async def run():
            both = [request("a", [CLUMSY], seed=11, max_tokens=None), request("b", [CLUMSY], seed=12, max_tokens=None)]
            with pytest.raises(RequestError, match="nobody wants this"):
                await collect(client.submit(both))
            stats = await client.stats()
            return stats.num_running, stats.requests_finished

        assert asyncio.run(run()) == (0, {"abort": 1})


def test_a_bug_met_in_adding_a_request_costs_that_request_only():
    with engine() as client:

        async def run():
            with pytest.raises(RequestError, match="an internal error; the server's log has the cause") as caught:
                await collect(client.submit([request(prompt=[CLUMSY])]))
            return caught.value.status, await collect(client.submit([request(prompt=[5], max_tokens=1)]))

        assert asyncio.run(run()) == (500, ([6], "length"))


def test_a_malformed_request_is_refused_and_the_engine_goes_on():
    with engine() as client:

        async def run():
            with pytest.raises(RequestError, match=r"malformed request: Expected `int`, got `str` - at `\$\.requests"):
                await collect(client.submit([request(prompt=["seven"])]))
            return await collect(client.submit([request(prompt=[5], max_tokens=1)]))

        assert asyncio.run(run()) == ([6], "length")


def test_malformed_and_unknown_messages_are_ignored_on_both_sides(caplog):
    with engine() as client:

        async def run():
            client._life._to_engine.send(b"\xc1 no msgpack")
            client._life._to_engine.send(wire.encode({"type": "submit", "requests": 7}))
            client._life.send(wire.Abort(["nobody"]))
            client._take(client._life, b"\xc1 no msgpack")
            client._deliver([])
            client._refuse(wire.Refused(["nobody"], "no", None, "c", 400))
            client._answer(wire.Stats(10**6, await client.stats()))
            return await collect(client.submit([request(max_tokens=2)]))

        assert asyncio.run(run()) == ([6, 7], "length")
    assert "ignored a malformed message of the engine" in caplog.text


def test_an_idle_engine_uses_no_processor_time():
    with engine() as client:
        asyncio.run(collect_one(client))
        process = psutil.Process(client.pid)
        before = sum(process.cpu_times()[:2])
        client._watcher.join(0.6)  # it is alive: this only lets time pass
        assert sum(process.cpu_times()[:2]) - before <= 0.1


async def collect_one(client):
    return await collect(client.submit([request(max_tokens=1)]))


def test_ctrl_c_and_sigterm_for_everyone_do_not_end_the_engine():
    with engine() as client:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(client.pid, number)
        assert asyncio.run(collect_one(client)) == ([6], "length")
        assert os.getsid(client.pid) != os.getsid(0)


# -- a step hangs ------------------------------------------------------------------------------------------------------


def test_an_engine_whose_step_hangs_is_not_healthy_until_it_answers_again(tmp_path, capfd, caplog):
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with engine(step_timeout=0.2, gate=str(gate)) as client:

        async def run():
            await collect(client.submit([request(max_tokens=FIRST_STEPS)]))
            first = client.health()
            hangs = asyncio.ensure_future(collect(client.submit([request(prompt=[HOLDS], max_tokens=2)])))

            async def healthy():
                return client.health().ready

            async def unhealthy():
                return not client.health().ready and "tokens; it is here" in _written(capfd)

            async with asyncio.timeout(10):
                await until(unhealthy)
                second = client.health()
                gate.write_text("")
                assert await hangs == ([907, 908], "length")
                await until(healthy)
            return first, second

        _written.so_far = ""
        first, second = asyncio.run(run())
    assert (first.alive, first.ready) == (True, True)
    told = "the engine has not answered for more than 0.2 s: a step of it hangs (--step-timeout)"
    assert (second.alive, second.ready, second.detail) == (True, False, told)
    assert "a step has run for more than 0.2 s (--step-timeout): 1 sequences, 7 tokens; it is here:" in _written(capfd)
    assert "with open(self.setup.gate) as gate:" in _written(capfd)
    assert [record.getMessage() for record in caplog.records][:1] == [told]
    assert "the engine answers again after" in caplog.text


def _written(capfd):
    _written.so_far += capfd.readouterr().err
    return _written.so_far


def test_the_first_steps_may_take_longer_and_no_time_is_kept_of_an_idle_engine(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(watchdog, "monotonic", lambda: now[0])

    def after(seconds, pulse, busy=True):
        now[0] += seconds
        return pulse.feel(busy), pulse.trouble.partition(":")[0]

    pulse, never = watchdog.Pulse(60.0), watchdog.Pulse(0.0)
    assert after(1000, pulse, busy=False) == (False, "")
    assert after(0, pulse) == (True, "")  # it is asked, once
    assert after(599, pulse) == (False, "")
    assert after(2, pulse) == (False, "the engine has not answered for more than 600 s")
    for _ in range(FIRST_STEPS):
        pulse.heard(of_step=True)
    assert after(0.5, pulse) == (False, "")
    assert after(0.5, pulse) == (True, "")
    assert after(61, pulse, busy=False) == (False, "the engine has not answered for more than 60 s")
    assert after(9999, never) == (False, "")


# -- the engine ends ---------------------------------------------------------------------------------------------------


def test_kill_9_fails_every_stream_within_two_seconds():
    with engine(step_seconds=0.001) as client:

        async def run():
            streams = [client.submit([request(f"r{i}", max_tokens=None)]) for i in range(20)]
            for stream in streams:
                await anext(stream)
            reading = [asyncio.ensure_future(collect(stream)) for stream in streams]
            mourning = asyncio.ensure_future(client.wait_dead())
            await asyncio.sleep(0)
            killed = time.monotonic()
            os.kill(client.pid, signal.SIGKILL)
            results = await asyncio.gather(*reading, return_exceptions=True)
            reason = await mourning
            assert time.monotonic() - killed < NOTICED_WITHIN
            assert [type(result) for result in results] == [EngineDeadError] * 20
            with pytest.raises(EngineDeadError, match="SIGKILL"):
                client.submit([request()])
            with pytest.raises(EngineDeadError, match="SIGKILL"):
                await client.stats()
            return reason

        pid = client.pid
        reason = asyncio.run(run())
        assert reason == f"the engine process {pid} was ended by SIGKILL (out of memory?)"
        assert (client.health().alive, client.health().ready, client.health().detail) == (False, False, reason)
        assert client.dead
        assert asyncio.run(client.wait_dead()) == reason


def test_kill_9_is_noticed_in_the_middle_of_a_long_step():
    with engine() as client:

        async def run():
            stream = client.submit([request(prompt=[BLOCKS])])
            waiting = asyncio.ensure_future(client.stats())
            await asyncio.sleep(0)
            os.kill(client.pid, signal.SIGKILL)
            killed = time.monotonic()
            with pytest.raises(EngineDeadError):
                await collect(stream)
            with pytest.raises(EngineDeadError):
                await waiting
            assert time.monotonic() - killed < NOTICED_WITHIN

        asyncio.run(run())


def test_a_step_that_breaks_says_what_broke(caplog):
    with engine() as client:

        async def run():
            with pytest.raises(EngineDeadError, match="the engine broke; the server's log has the cause"):
                await collect(client.submit([request(prompt=[BREAKS])]))
            return await client.wait_dead()

        assert asyncio.run(run()) == "the engine broke; the server's log has the cause"
    assert "the engine broke: ZeroDivisionError: the step broke; it is not started again" in caplog.text
    assert "raise ZeroDivisionError" in caplog.text


def test_what_ended_the_engine_is_told_also_when_it_cannot_be_closed(caplog):
    class Lost(FakeEngine):
        def check(self):
            raise EngineDeadError("the device is lost")

        def close(self):
            raise RuntimeError("nobody to free the memory of")

    class Silent:
        def poll(self, timeout):
            return 0

    with pytest.raises(EngineDeadError, match=r"^the device is lost$"):
        server.run(Lost(Setup()), Silent(), None)
    assert "RuntimeError: nobody to free the memory of" in caplog.text


def test_everybody_who_waits_is_told_when_the_engine_can_be_watched_no_longer(caplog):
    def broken(timeout):
        raise KeyError("no such message")

    told = "the engine can be watched no longer; the server's log has the cause"
    with engine(step_seconds=0.01) as client:

        async def run():
            stream = client.submit([request(max_tokens=None)])
            await anext(stream)
            client._life.receive = broken
            async with asyncio.timeout(5):
                with pytest.raises(EngineDeadError, match=told):
                    await collect(stream)
                return await client.wait_dead()

        assert asyncio.run(run()) == told
        assert client.dead
    assert "Traceback" in caplog.text


def test_a_load_that_can_be_watched_no_longer_is_over(monkeypatch):
    def broken(life, timeout):
        raise KeyError("no such message")

    monkeypatch.setattr(EngineProcess, "receive", broken)
    client = EngineClient(fake_engine.build, Setup(build="block"))
    client.start()
    assert client._settled.wait(10)
    with pytest.raises(EngineDeadError, match="the engine can be watched no longer"):
        client.wait_ready()
    client.close()


def test_a_dead_engine_is_started_again_as_often_as_agreed():
    with engine(restarts=2) as client:

        async def run():
            for life in (1, 2):
                pid = client.pid
                with pytest.raises(EngineDeadError, match="SIGKILL"):
                    await collect(client.submit([request(prompt=[DIES])]))
                health = client.health()
                if not health.ready:  # else it is up again already
                    assert health.detail.endswith(f"it is being started again ({life} of 2)")
                    with pytest.raises(EngineDeadError, match=f"it is being started again \\({life} of 2\\)"):
                        client.submit([request()])

                async def ready():
                    return client.health().ready

                async with asyncio.timeout(30):
                    await until(ready)
                assert client.pid != pid
                assert await collect(client.submit([request(max_tokens=2)])) == ([6, 7], "length")
            with pytest.raises(EngineDeadError):
                await collect(client.submit([request(prompt=[DIES])]))
            return await client.wait_dead()

        assert asyncio.run(run()).endswith("was ended by SIGKILL (out of memory?)")


def test_a_next_life_that_cannot_be_built_is_the_end(tmp_path):
    with engine(restarts=5, marker=str(tmp_path / "lived")) as client:

        async def run():
            with pytest.raises(EngineDeadError):
                await collect(client.submit([request(prompt=[DIES])]))
            return await client.wait_dead()

        assert asyncio.run(run()) == "the model has vanished meanwhile\n  set by: --model"


# -- starting ----------------------------------------------------------------------------------------------------------


def started(argument, build=fake_engine.build):
    client = EngineClient(build, argument)
    client.start()
    try:
        client.wait_ready()
    finally:
        client.close()


def test_problems_found_while_building_reach_the_parent_as_they_are():
    with pytest.raises(UserError) as caught:
        started(Setup(build="user error"))
    assert caught.value.problems == (
        Problem("no such model", "--model", ("name another",)),
        Problem("no such device", "--device"),
    )
    assert caught.value.exit_code is ExitCode.REFUSED


def test_a_builder_that_breaks_is_told_with_its_traceback(caplog):
    with pytest.raises(EngineDeadError) as caught:
        started(Setup(build="crash"))
    assert str(caught.value) == "the engine broke: ZeroDivisionError: the builder broke"
    assert 'raise ZeroDivisionError("the builder broke")' in caplog.text


def test_an_engine_killed_while_it_loads_is_told():
    with pytest.raises(EngineDeadError, match=r"was ended by SIGKILL \(out of memory\?\)"):
        started(Setup(build="die"))


def test_an_argument_that_the_child_cannot_read_is_told():
    with pytest.raises(EngineDeadError, match="the engine broke: ValueError: invalid literal for int"):
        started(NotPickledBack())


def test_closing_while_it_loads_does_not_wait_for_the_load(tmp_path):
    marker = tmp_path / "building"
    client = EngineClient(fake_engine.build, Setup(build="block", marker=str(marker)))
    client.start()
    assert client.health().detail == "the engine is loading"
    with pytest.raises(EngineDeadError, match="the engine is loading"):
        asyncio.run(collect_one(client))
    while not marker.exists():
        time.sleep(0.01)
    before = time.monotonic()
    client.close()
    assert time.monotonic() - before < NOTICED_WITHIN


# -- stopping ----------------------------------------------------------------------------------------------------------


def test_close_asks_first_and_the_engine_ends_by_itself(caplog):
    caplog.set_level(logging.DEBUG)
    with engine() as client:
        life = client._life
        client.close()
        assert life.obituary().endswith("ended with exit code 0")
        client.close()
    assert caplog.text == ""


def test_close_ends_an_engine_that_does_not_listen():
    with engine() as client:

        async def begin():
            client.submit([request(prompt=[BLOCKS])])
            return await asyncio.sleep(0)

        asyncio.run(begin())
        before = time.monotonic()
        client.close(grace=0.1)
        assert time.monotonic() - before < NOTICED_WITHIN


def test_streams_still_open_at_close_fail():
    with engine(step_seconds=0.001) as client:

        async def run():
            stream = client.submit([request(max_tokens=None)])
            await anext(stream)
            await asyncio.to_thread(client.close)
            with pytest.raises(EngineDeadError):
                await collect(stream)

        asyncio.run(run())


# -- the parent ends ---------------------------------------------------------------------------------------------------

PARENT = """
import asyncio, sys
from core.engine.client import EngineClient
from core.engine.interpreter import Interpreter
from core.interfaces.request import Request, SamplingParams
from tests.service import fake_engine

async def run():
    client = EngineClient(fake_engine.build, fake_engine.Setup(build=sys.argv[1]))
    client.start()
    if sys.argv[2] != "loading":
        client.wait_ready()
    if sys.argv[2] == "stepping":
        client.submit([Request(request_id="r", prompt_token_ids=[fake_engine.BLOCKS], params=SamplingParams())])
    print(client.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(run())
"""


@pytest.mark.parametrize(("build", "when"), [("well", "idle"), ("well", "stepping"), ("block", "loading")])
def test_the_engine_ends_with_its_parent_however_that_ends(build, when, tmp_path):
    folder = tmp_path / "deeper"
    folder.mkdir()
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, build, when],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(folder)},
    )
    with parent:
        assert psutil.pid_exists(next(int(line) for line in parent.stdout if line.strip().isdigit()))
        killed = time.monotonic()
        parent.kill()
        parent.stdout.read()  # ends when nobody holds it: the engine has a copy too
        assert time.monotonic() - killed < NOTICED_WITHIN
    assert list(folder.iterdir()) == []
