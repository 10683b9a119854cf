import asyncio
import json

import pytest

from core.bench.load import LoadOptions, main, run_load

CHUNKS = 6


class Server:
    """A chat server of a few lines: streams, counts who hangs up, and can be told to misbehave."""

    def __init__(self, misbehaves=""):
        self.misbehaves = misbehaves
        self.bodies = []
        self.cut = 0
        self.finished = 0

    async def __aenter__(self):
        self._server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        await self._server.wait_closed()

    async def serve(self, reader, writer):
        try:
            await self.answer(reader, writer)
            self.finished += 1
        except ConnectionError:
            self.cut += 1
        finally:
            writer.close()

    async def answer(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        if head.startswith("GET /v1/models"):
            found = json.dumps({"data": [{"id": "a model"}]})
            writer.write(f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len(found)}\r\n\r\n{found}".encode())
            return
        length = int(next(line for line in head.lower().split("\r\n") if line.startswith("content-length")).split(":")[1])
        self.bodies.append(json.loads(await reader.readexactly(length)))
        if self.misbehaves == "refuses":
            writer.write(b"HTTP/1.1 429 Too Many Requests\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            return
        if self.misbehaves == "is full":
            writer.write(b"HTTP/1.1 429 Too Many Requests\r\nConnection: close\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n")
            return
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/event-stream\r\n\r\n")
        if self.misbehaves == "hangs":
            await reader.read()
            raise ConnectionResetError
        for number in range(CHUNKS):
            delta = {"content": "word "} if number else {"role": "assistant", "content": ""}
            await self.send(writer, {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
            if reader.at_eof() or await self.gone(reader):
                raise ConnectionResetError
        if self.misbehaves == "breaks":
            await self.send(writer, {"error": {"message": "the engine is gone"}})
            return
        if self.misbehaves == "ends early":
            return
        await self.send(writer, {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
        # Two tokens in a chunk: a count of chunks would be wrong.
        await self.send(writer, {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2 * (CHUNKS - 1)}})
        writer.write(b"data: [DONE]\n\n")
        await writer.drain()

    async def send(self, writer, chunk):
        writer.write(f"data: {json.dumps(chunk)}\n\n".encode())
        await writer.drain()

    async def gone(self, reader):
        try:
            async with asyncio.timeout(0.005):
                return await reader.read(1) == b""
        except TimeoutError:
            return False


def loaded(misbehaves="", **options):
    async def both():
        async with Server(misbehaves) as server:
            report = await run_load(LoadOptions(**{"url": server.url, "clients": 6, "seconds": 0.3, **options}))
        return server, report

    return asyncio.run(both())


def test_whole_answers_are_counted_by_their_usage():
    server, report = loaded()
    tally = report.tally
    assert tally.completed >= 6
    assert tally.output_tokens == tally.completed * 2 * (CHUNKS - 1)
    assert tally.prompt_tokens == tally.completed * 9
    assert tally.finish_reasons == {"length": tally.completed}
    assert not tally.errors
    assert tally.hung_up == server.cut == 0
    assert len(tally.first_token) == len(tally.per_token) == len(tally.whole) == tally.completed
    assert all(first < whole for first, whole in zip(tally.first_token, tally.whole, strict=True))
    assert report.output_per_second == tally.output_tokens / report.seconds
    body = server.bodies[0]
    assert (body["model"], body["stream"], body["stream_options"]) == ("a model", True, {"include_usage": True})


def test_a_share_of_the_clients_hangs_up():
    server, report = loaded(disconnect=1 / 3, max_tokens=4)
    assert report.tally.hung_up >= 2
    assert report.tally.completed >= 4
    assert not report.tally.errors
    assert server.cut == report.tally.hung_up
    assert server.finished == report.tally.completed + 1  # and the list of models


def test_requests_differ_and_are_the_same_again():
    (first, _), (again, _) = loaded(clients=1, model="b"), loaded(clients=1, model="b")
    shorter = min(len(first.bodies), len(again.bodies))
    assert first.bodies[:shorter] == again.bodies[:shorter]
    assert first.bodies[0] != first.bodies[1]


@pytest.mark.parametrize(
    ("misbehaves", "error"),
    [
        ("refuses", "HTTP 429"),
        ("breaks", "error in the stream: {'message': 'the engine is gone'}"),
        ("ends early", "the stream ended early"),
        ("hangs", "stuck for 0.2 s"),
    ],
)
def test_errors_are_counted(misbehaves, error):
    _, report = loaded(misbehaves, patience=0.2 if misbehaves == "hangs" else 30)
    assert set(report.tally.errors) == {error}
    assert report.tally.errors[error] >= 6
    assert report.tally.completed == 0
    assert report.percentiles(report.tally.whole) == {}


def test_who_is_told_to_come_later_comes_later_and_is_no_error():
    _, report = loaded("is full")  # for seven seconds, which are more than there are
    assert report.tally.refused == 6
    assert not report.tally.errors
    assert report.seconds < 3


def test_the_command_prints_and_writes(tmp_path, capsys):
    async def both():
        async with Server() as server:
            arguments = ["--url", server.url, "--clients", "2", "--seconds", "0.1", "--json", str(tmp_path / "report.json")]
            return await asyncio.to_thread(main, arguments)

    assert asyncio.run(both()) == 0
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["completed"] >= 2
    assert set(content["percentiles"]["first_token"]) == {"50", "90", "99"}
    printed = capsys.readouterr().out
    assert f"{content['completed']} answers, 0 hung up on, 0 told to come again, 0 errors" in printed
    assert "first token" in printed


def test_no_server_is_told(capsys):
    assert main(["--url", "http://127.0.0.1:9", "--seconds", "0"]) == 1
    assert capsys.readouterr().err.startswith("http://127.0.0.1:9/v1/models names no model: ")
