"""The front end as a process: how it starts, what happens when a client leaves, how it stops, what the engine's death does."""

import asyncio
import io
import json
import logging
import signal
import socket
import threading
import time
from functools import partial

import httpx
import openai
import pytest

from core.errors import ExitCode, UserError
from core.offers import Context
from frontends.openai_http import errors, plugin
from frontends.openai_http.protocol import NO_WEBSOCKET
from frontends.openai_http.server import OpenAIServer
from frontends.openai_http.settings import HttpSettings
from tests.frontends.conftest import serving
from tests.frontends.fake_service import ANSWER, FakeService


def complete(url, script, *, stream=True, **fields):
    """A completion as an open response: use it in a with."""
    body = {"prompt": "x", "stream": stream, "cache_salt": script, **fields}
    return httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=20)


def events(response):
    for line in response.iter_lines():
        if line.startswith("data: "):
            yield line.removeprefix("data: ")


def text_of(event):
    return json.loads(event)["choices"][0]["text"]


def test_it_says_where_it_listens_and_is_healthy(served):
    assert served.url.startswith("http://127.0.0.1:")
    assert httpx.get(f"{served.url}/health").status_code == 200


def posted(url, **body):
    """A connection on which a chat has been asked for, and nothing read."""
    host, _, port = url.removeprefix("http://").partition(":")
    content = json.dumps({"messages": [{"role": "user", "content": "x"}], **body}).encode()
    connection = socket.create_connection((host, int(port)), timeout=20)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(content) + content)
    return connection


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("after", [0, 2])
def test_a_client_that_leaves_aborts_its_request(served, stream, after):
    request_id = f"leaver-{stream}-{after}"
    with posted(served.url, stream=stream, cache_salt=f"hold_after={after}", request_id=request_id):
        served.said(f"started chatcmpl-{request_id}")
    served.said(f"aborted chatcmpl-{request_id}")


def test_a_client_that_does_not_read_keeps_no_dead_server_alive():
    with serving(drain_timeout=60) as served:
        flood = "times=260000 chunk=9000000"  # 8 MB at once, more than the sockets hold
        with posted(served.url, stream=True, cache_salt=flood):
            served.said("finished ")
            served.process.send_signal(signal.SIGUSR1)
            assert served.wait(20) == ExitCode.ENGINE_DIED


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_streams_finish_and_takes_nothing_new(stop):
    with serving(drain_timeout=20) as served:
        with complete(served.url, "delay=0.02") as response:
            incoming = events(response)
            text = text_of(next(incoming))
            served.process.send_signal(stop)
            served.said("draining")
            rest = list(incoming)
        assert text + "".join(text_of(each) for each in rest[:-1]) == ANSWER[:16]
        assert rest[-1] == "[DONE]"
        assert served.wait() == ExitCode.OK
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{served.url}/health")


def test_what_is_not_finished_in_time_ends_with_an_error():
    with serving(drain_timeout=0.3) as served:
        with complete(served.url, "hold_after=2") as response:
            incoming = events(response)
            next(incoming)
            began = time.monotonic()
            served.process.terminate()
            *_, last = incoming
        assert json.loads(last)["error"] == {
            "message": "the server is stopping",
            "type": "service_unavailable_error",
            "param": None,
            "code": "server_stopping",
        }
        assert served.wait() == ExitCode.OK
        assert time.monotonic() - began < 5


def test_a_second_signal_does_not_wait():
    with serving(drain_timeout=60) as served, complete(served.url, "hold_after=1") as response:
        incoming = events(response)  # kept: dropping it would close the connection
        next(incoming)
        served.process.terminate()
        served.said("draining")
        served.process.terminate()
        assert served.wait(10) == ExitCode.OK
        incoming.close()


@pytest.mark.parametrize("stream", [False, True])
def test_the_engines_death_ends_what_runs_and_then_the_server(stream):
    with serving() as served, httpx.Client(base_url=served.url) as other:
        assert other.get("/health").status_code == 200
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            died = []

            def kill_when_started():
                served.said("started ")
                died.append(time.monotonic())
                served.process.send_signal(signal.SIGUSR1)

            killer = threading.Thread(target=kill_when_started)
            killer.start()
            with pytest.raises(openai.APIError, match="the engine is gone: killed by a signal"):
                list(
                    client.completions.create(
                        model="fake", prompt="x", stream=stream, extra_body={"cache_salt": "hold_after=3"}
                    )
                )
            assert time.monotonic() - died[0] < 2
            killer.join()
        health = other.get("/health")
        assert (health.status_code, health.json()["detail"]) == (503, "killed by a signal")
        refused = other.post("/v1/completions", json={"prompt": "x"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_dead")
        assert served.wait() == ExitCode.ENGINE_DIED


def test_an_engine_that_dies_during_the_drain_ends_it():
    with serving(drain_timeout=60) as served:
        with complete(served.url, "hold_after=1") as response:
            incoming = events(response)
            next(incoming)
            served.process.terminate()
            served.said("draining")
            served.process.send_signal(signal.SIGUSR1)
            *_, last = incoming
            assert json.loads(last)["error"]["code"] == "engine_dead"
        assert served.wait() == ExitCode.ENGINE_DIED


def test_stop_from_another_thread():
    server = OpenAIServer(HttpSettings(port=0), drain_timeout=1.0)
    server.stop()  # before it runs: nothing

    class Ready(FakeService):
        async def wait_dead(self):
            threading.Thread(target=server.stop).start()
            return await super().wait_dead()

    assert server.run(Ready()) is ExitCode.OK


def test_the_launchers_signal_handlers_come_back():
    def launchers(number, frame):
        raise AssertionError("nothing was sent")

    before = {number: signal.signal(number, launchers) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server = OpenAIServer(HttpSettings(port=0), drain_timeout=1.0)

        class Ready(FakeService):
            async def wait_dead(self):
                server.stop()
                return await super().wait_dead()

        assert server.run(Ready()) is ExitCode.OK
        assert [signal.getsignal(number) for number in before] == [launchers, launchers]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("body", [b"", b'{"prompt": '])
def test_a_body_that_does_not_come_holds_up_no_stop(body):
    with serving(drain_timeout=30) as served:
        host, _, port = served.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\nexpect: 100-continue\r\n\r\n"
            connection.sendall(head + body)
            assert connection.recv(100).startswith(b"HTTP/1.1 100")  # the route reads
            served.process.terminate()
            answer = b"".join(iter(lambda: connection.recv(10_000), b""))
        assert answer.startswith(b"HTTP/1.1 503")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "server_stopping"
        assert served.wait(10) == ExitCode.OK
    assert not any("Traceback" in line for line in served.errors)


def test_a_drain_without_an_end():
    with serving(drain_timeout="inf") as served:
        served.process.terminate()
        assert served.wait() == ExitCode.OK


ASKED_FOR_WEBSOCKET = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n"
UNREADABLE = "this is no HTTP request that can be read: "


def test_what_is_no_http_is_told_like_everything_else():
    def answered(sent):
        host, _, port = served.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(sent)
            head, _, body = b"".join(iter(partial(connection.recv, 4096), b"")).partition(b"\r\n\r\n")
        assert b"content-type: application/json" in head
        return int(head.split()[1]), json.loads(body)["error"]

    with serving() as served:
        garbage = answered(b"garbage\r\n\r\n")
        long = answered(b"GET / HTTP/1.1\r\nx: %b" % (b"x" * 70_000))
        many = b"".join(b"x%d: %b\r\n" % (number, b"x" * 1000) for number in range(17))
        whole = answered(b"GET /health HTTP/1.1\r\nhost: x\r\n%b\r\n" % many)
        few = httpx.get(f"{served.url}/health", headers={f"x{number}": "x" * 1000 for number in range(15)})
        websocket = answered(ASKED_FOR_WEBSOCKET)
        other = httpx.get(f"{served.url}/health", headers={"connection": "Upgrade", "upgrade": "h2c"})
    assert garbage == (400, errors.error_body(400, f"{UNREADABLE}illegal request line")["error"])
    assert (long[0], long[1]["message"]) == (431, f"{UNREADABLE}receive buffer too long")
    assert (whole[0], whole[1]["message"]) == (431, f"{UNREADABLE}its head is longer than 16384 bytes")
    assert few.status_code == 200
    assert (websocket[0], websocket[1]["message"]) == (400, NO_WEBSOCKET)
    assert other.status_code == 200
    assert [line for line in served.errors if line] == ["W uvicorn.error: Invalid HTTP request received."] * 3


@pytest.mark.parametrize("stdout", [None, "/dev/full"])
def test_a_standard_output_that_takes_nothing_stops_no_server(monkeypatch, caplog, stdout):
    server = OpenAIServer(HttpSettings(port=0), drain_timeout=1.0)

    class Ready(FakeService):
        async def wait_dead(self):
            while "listening on http://127.0.0.1:" not in caplog.text:
                await asyncio.sleep(0)
            server.stop()
            return await super().wait_dead()

    caplog.set_level(logging.INFO, "dovetail")
    stream = None if stdout is None else open(stdout, "wb", buffering=0)  # noqa: SIM115
    text = None if stream is None else io.TextIOWrapper(stream, write_through=True)
    monkeypatch.setattr("sys.stdout", text)
    try:
        assert server.run(Ready()) is ExitCode.OK
    finally:
        monkeypatch.undo()
        if stream is not None:
            text.detach()
            stream.close()


def run_on(host, port):
    return OpenAIServer(HttpSettings(host=host, port=port), drain_timeout=0)


def test_nobody_is_kept_waiting_before_the_server_runs():
    server = run_on("127.0.0.1", 0)
    port = server._bound.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    server.close()


def test_two_servers_that_started_together():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    first, second = run_on("127.0.0.1", port), run_on("127.0.0.1", port)
    first._bound.listen()
    with pytest.raises(UserError, match=f"port {port} on 127.0.0.1 is in use by another program"):
        second.run(FakeService())
    first.close()


@pytest.mark.parametrize("setting", ["port", "metrics_port"])
def test_nothing_is_left_of_a_server_whose_port_is_in_use(monkeypatch, setting):
    """No thread that sends traces, and no socket: one would be warned of."""
    made = []
    monkeypatch.setattr("frontends.openai_http.server.provider_of", made.append)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = {"port": 0, setting: taken.getsockname()[1]}
        with pytest.raises(UserError, match="is in use by another program"):
            OpenAIServer(HttpSettings(**ports, otlp_traces_endpoint="http://127.0.0.1:9/v1/traces"), drain_timeout=0)
    assert made == []


def test_a_port_in_use_is_the_users_to_mend():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError) as error:
            run_on("127.0.0.1", port)
    assert str(error.value) == (
        f"port {port} on 127.0.0.1 is in use by another program\n"
        "  set by: openai_http.port\n"
        f"  remedy: --port {port + 1 if port < 65535 else 8000}, or another free one\n"
        "  remedy: --port 0 to have a free one picked\n"
        "  remedy: stop the program that has it"
    )


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("no.such.host.invalid", "the host 'no.such.host.invalid' is no address and no name that can be resolved"),
        ("a..b", "the host 'a..b' is no address and no name that can be resolved"),
        ("192.0.2.1", "192.0.2.1 is no address of this machine"),
    ],
)
def test_a_host_that_cannot_be_listened_on(host, message):
    with pytest.raises(UserError) as error:
        run_on(host, 0)
    assert str(error.value).splitlines()[0] == message


def test_a_missing_fastapi_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "frontends.openai_http.server", None)

    def missing(name, *args, original=__import__, **kwargs):
        if name == "frontends.openai_http.server":
            raise ModuleNotFoundError("No module named 'fastapi'", name="fastapi")
        return original(name, *args, **kwargs)

    monkeypatch.setattr("builtins.__import__", missing)
    with pytest.raises(UserError, match="needs fastapi, which is not installed"):
        plugin.create(Context(section=None, settings={"drain_timeout": 1.0}, facts={}))


def test_the_offer():
    [offer] = plugin.register_front_ends()
    assert (offer.name, offer.kind) == ("openai_http", "front_end")
    fields = HttpSettings.model_fields
    assert {alias.sets for alias in offer.aliases} <= set(fields)
    assert all(field.description for field in fields.values())
    assert (HttpSettings().host, HttpSettings().port) == ("127.0.0.1", 8000)


def test_metrics_on_a_port_of_their_own():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    apart = f"http://127.0.0.1:{port}"
    with serving(section={"metrics_port": port}) as served, httpx.Client(timeout=20) as client:
        assert "dovetail_engine_up 1.0" in client.get(f"{apart}/metrics").text
        assert client.get(f"{served.url}/health").status_code == 200
        for url in (f"{served.url}/metrics", f"{apart}/health", f"{apart}/v1/models"):
            refused = client.get(url)
            assert (refused.status_code, refused.json()["error"]["type"]) == (404, "invalid_request_error")


def test_a_metrics_port_in_use_is_told_as_such():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError) as error:
            OpenAIServer(HttpSettings(host="127.0.0.1", port=0, metrics_port=port), drain_timeout=1.0)
    assert error.value.problems[0].where == "openai_http.metrics_port"
    assert error.value.problems[0].remedies[0].startswith("--metrics-port ")
