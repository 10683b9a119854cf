"""An engine that several processes ask: the first starts it, the others ask by way of that one."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys

import httpx2
import psutil
import pytest

from core.engine.client import EngineClient
from core.engine.sharing import Place, SharedEngine, Sharing
from core.errors import EngineDeadError
from tests.service import fake_engine
from tests.service.fake_engine import DIES, REFUSED, Setup
from tests.service.test_engine_process import collect, nothing_left_behind, request, until  # noqa: F401


@contextlib.contextmanager
def shared(restarts=0, **setup):
    """The first process's part and, in this process as well, another's."""
    client = EngineClient(fake_engine.build, Setup(**setup), restarts=restarts, askers=3)
    sharing = Sharing(client, 3)
    client.start()
    other = SharedEngine(Place(1, 3, sharing._folder))
    other.start()
    try:
        client.wait_ready()
        other.wait_ready()
        yield client, sharing, other
    finally:
        other.close()
        sharing.end_others(5.0)
        client.close()
        sharing.close()


def test_each_asker_has_its_own_tokens_though_ids_are_alike():
    with shared() as (client, _, other):

        async def run():
            streams = client.submit([request(prompt=[1], max_tokens=3)]), other.submit([request(prompt=[50], max_tokens=4)])
            return [await collect(stream) for stream in streams], await client.stats(), await other.stats()

        told, first, second = asyncio.run(run())
    assert told == [([2, 3, 4], "length"), ([51, 52, 53, 54], "length")]
    assert first.requests_finished == second.requests_finished == {"length": 2}


def test_refusals_aborts_and_readings_pass_both_ways():
    with shared(step_seconds=0.002) as (_, sharing, other):

        async def run():
            with pytest.raises(Exception, match=r"^nobody wants this$"):
                await collect(other.submit([request(prompt=[REFUSED])]))
            state = await other.embed([1, 2], mean=False)
            stream = other.submit([request(prompt=[1], max_tokens=5000)])
            await anext(stream)
            busy = sharing.busy
            stream.close()

            async def ended():
                stats = await other.stats()
                return stats.num_running == 0 and not sharing.busy

            await until(ended)
            return len(state) > 0, busy

        assert asyncio.run(run()) == (True, True)


def test_everybody_hears_of_the_engines_end_and_of_its_next_life():
    with shared(restarts=1) as (client, _, other):

        async def run():
            with pytest.raises(EngineDeadError, match=r"^the engine process \d+ was ended by SIGKILL"):
                await collect(other.submit([request(prompt=[DIES])]))

            async def again():
                return client.health().ready and other.health().ready

            await until(again)
            lived = await collect(other.submit([request(prompt=[7], max_tokens=1)]))
            with pytest.raises(EngineDeadError):
                await collect(other.submit([request(prompt=[DIES])]))
            return lived, await other.wait_dead(), other.health().alive

        lived, reason, alive = asyncio.run(run())
    assert lived == ([8], "length")
    assert "was ended by SIGKILL" in reason
    assert not alive


def leave_in_the_middle(place, path):
    engine = SharedEngine(place)
    engine.start()
    engine.wait_ready()

    async def run():
        await anext(engine.submit([request(prompt=[1], max_tokens=5000)]))
        os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(run())


def test_what_a_process_asked_ends_with_it_and_the_others_go_on(caplog):
    with shared(step_seconds=0.002) as (client, sharing, other):
        sharing.start(2, leave_in_the_middle, None, ())

        async def run():
            async def aborted():
                return (await client.stats()).requests_finished == {"abort": 1}

            await until(aborted)
            return await collect(other.submit([request(prompt=[7], max_tokens=1)]))

        assert asyncio.run(asyncio.wait_for(run(), 20)) == ([8], "length")
    told = "a process that asks the engine was ended by SIGKILL (out of memory?); the others go on"
    assert told in [record.message for record in caplog.records]


def test_a_server_of_two_processes_answers_as_one_and_ends_as_one():
    command = [sys.executable, "-m", "core.serve", "--model", "random:tiny", "--device", "cpu", "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, "--api-server-count", "2", "--log-level", "error"], stdout=subprocess.PIPE, text=True, env=environment
    ) as server:
        try:
            url = server.stdout.readline().removeprefix("listening on ").strip()
            for _ in range(12):  # a connection each, which go to one or the other
                assert httpx2.post(f"{url}/v1/completions", json={"prompt": "x", "max_tokens": 2}).status_code == 200
            told = {
                httpx2.get(f"{url}/metrics").text.partition('route="/v1/completions",status="200"} ')[2][:4] for _ in range(6)
            }
            children = psutil.Process(server.pid).children()
        finally:
            server.terminate()
        assert server.wait(20) == 0
    assert told == {"12.0"}
    assert [child.is_running() for child in children] == [False, False]
