"""kill -9 of the engine: clients get an error within 2 s, /health turns 503, the server exits or restarts the engine."""

import threading
import time

import httpx
import openai
import pytest

from core.errors import ExitCode
from tests.must_show.served import serving

LONG = {"prompt": [5, 6, 7], "max_tokens": 2000, "temperature": 0, "extra_body": {"ignore_eos": True}}
SLOW = ("--torch-kernels", "reference")  # with native kernels so small a model says all this in a second


def stream_until_error(url, model, began, failed):
    """Streams; notes when the error came. A stream that ends in peace is noted as such."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        try:
            for _ in client.completions.create(model=model, stream=True, **LONG):
                began.set()
        except (openai.APIError, httpx.HTTPError) as error:
            failed.append((time.monotonic(), str(error)))
        else:
            failed.append((time.monotonic(), ""))


@pytest.mark.parametrize("restarts", [0, 1])
def test_the_engine_dies_under_its_clients(restarts):
    model = "random:tiny"
    with serving("--model", model, "--engine-restarts", str(restarts), *SLOW) as server:
        failed, began = [], [threading.Event() for _ in range(4)]
        clients = [threading.Thread(target=stream_until_error, args=(server.url, model, one, failed)) for one in began]
        for client in clients:
            client.start()
        assert all(one.wait(30) for one in began)
        server.engine.kill()
        killed = time.monotonic()
        seen = watch_health(server, killed + 2)
        for client in clients:
            client.join(10)
        assert len(failed) == 4
        for when, error in failed:
            assert error, "a stream ended as if nothing had happened"
            assert when - killed < 2, f"{when - killed:.1f} s until a client knew"
        assert 503 in seen or (not restarts and None in seen), seen
        if restarts:
            with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
                ready = until(lambda: httpx.get(f"{server.url}/health").status_code == 200, 60)
                assert ready, "the engine was not started again"
                answer = client.completions.create(model=model, prompt=[5, 6, 7], max_tokens=4, temperature=0)
                assert answer.usage.completion_tokens > 0
            server.engine.kill()
        assert server.process.wait(15) == ExitCode.ENGINE_DIED
    assert sum("was ended by SIGKILL" in line for line in server.errors) == 1 + restarts  # each death is told once


def watch_health(server, until_when):
    """Status codes of /health; None when nobody listens any more."""
    seen = []
    while time.monotonic() < until_when:
        try:
            seen.append(httpx.get(f"{server.url}/health", timeout=2).status_code)
        except httpx.HTTPError:
            seen.append(None)
        if seen[-1] in (503, None):
            return seen
        time.sleep(0.02)
    return seen


def until(true, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.1)
    return False
