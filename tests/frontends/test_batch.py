"""run-batch: over a served fake, and over a server that is a function."""

import asyncio
import fcntl
import json
import os
import signal
from types import SimpleNamespace

import httpx
import pytest

from core.errors import ExitCode
from frontends.cli import batch
from frontends.cli.main import main
from tests.frontends.fake_service import ANSWER

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def request(custom_id, url=TEXT, **body):
    body = body or {"prompt": "x", "max_tokens": 3}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body}) + "\n"


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "in.jsonl", tmp_path / "out.jsonl"


def run(*flags, url="http://127.0.0.1:9"):
    return main(["run-batch", "-i", "in.jsonl", "-o", "out.jsonl", "--url", url, *flags])


def answers(path):
    return {line["custom_id"]: line for line in map(json.loads, path.read_text().splitlines())}


def test_a_batch_is_answered_repaired_and_gone_on_with(files, served, capsys):
    asked, answered = files
    messages = [{"role": "user", "content": "hi"}]
    asked.write_text(
        request("chat", CHAT, messages=messages)
        + "\n"
        + request("hot", TEXT, prompt="x", temperature=-1)
        + request("text")
        + request("other", TEXT, prompt="x", model="nobody")
    )
    assert run("--concurrency", "2", url=f"{served.url}/v1") == ExitCode.FAILED
    first = answers(answered)
    assert set(first) == {"chat", "hot", "text", "other"}
    assert set(first["chat"]) == {"id", "custom_id", "response", "error"}
    assert first["chat"]["id"].startswith("batch_req_")
    assert (first["chat"]["response"]["status_code"], first["chat"]["error"]) == (200, None)
    assert first["chat"]["response"]["body"]["choices"][0]["message"]["content"] == ANSWER
    assert first["text"]["response"]["body"]["choices"][0]["text"] == "Par"
    assert (first["hot"]["response"]["status_code"], first["hot"]["error"]) == (400, None)
    assert first["hot"]["response"]["body"]["error"]["param"] == "temperature"
    assert first["other"]["response"]["status_code"] == 404
    assert "out.jsonl: 4 of 4 requests are answered, 2 of them with an error" in capsys.readouterr().err

    assert run() == ExitCode.FAILED  # nobody is asked
    assert capsys.readouterr().err.endswith(
        "--retry-failed asks these again; nothing is missing\n"
        "  hot: temperature must be a number in [0, 100], got -1.0\n"
        f"  other: {first['other']['response']['body']['error']['message']}\n"
    )
    whole = answered.read_bytes()
    answered.write_bytes(whole[:-20])
    asked.write_text(asked.read_text().replace("-1", "0").replace('"nobody"', '"fake"'))
    assert run("--retry-failed", url=served.url) == ExitCode.OK
    assert "the last line of out.jsonl was torn: it is asked again\n" in capsys.readouterr().err
    second = answers(answered)
    assert {each["response"]["status_code"] for each in second.values()} == {200}
    torn = json.loads(whole.splitlines()[-1])["custom_id"]
    for name in {"chat", "text"} - {torn}:
        assert second[name] == first[name]
    answered.write_bytes(answered.read_bytes().removesuffix(b"\n"))  # whole but for its end
    assert run("--quiet") == ExitCode.OK
    assert capsys.readouterr().err == ""
    assert answered.read_bytes().endswith(b"}\n")


def test_every_line_that_is_no_request_is_told(files, capsys):
    asked, answered = files
    asked.write_text(
        request("a")
        + request("a")
        + "{x\n[]\n"
        + '{"custom-id": "b", "method": "POST", "url": "/v1/completions", "body": {}}\n'
        + request("")
        + request("c", "/v1/files")
        + request("d").replace("POST", "GET")
        + request("e", TEXT, prompt="x", stream=True)
        + '{"custom_id": "f", "method": "POST", "url": "/v1/completions", "body": 1}\n'
    )
    assert run() == ExitCode.REFUSED
    assert capsys.readouterr().err == (
        "dovetail: error: custom_id 'a' stands in line 1 already\n  set by: in.jsonl:2\n"
        "  remedy: give each request a custom_id of its own\n"
        "dovetail: error: the line is not JSON: expecting property name enclosed in double quotes: line 1 column 2 (char 1)\n"
        "  set by: in.jsonl:3\n"
        "dovetail: error: the line is no JSON object\n  set by: in.jsonl:4\n"
        "dovetail: error: the request has no custom_id; did you mean 'custom-id'?\n  set by: in.jsonl:5\n"
        'dovetail: error: custom_id must be a text, and not an empty one; it is ""\n  set by: in.jsonl:6\n'
        'dovetail: error: url must be one of /v1/chat/completions, /v1/completions, /v1/embeddings; it is "/v1/files"\n'
        "  set by: in.jsonl:7\n"
        'dovetail: error: method must be "POST"; it is "GET"\n  set by: in.jsonl:8\n'
        "dovetail: error: body asks for a stream, and a batch's answers are written whole: leave out stream\n"
        "  set by: in.jsonl:9\n"
        "dovetail: error: body must be a JSON object\n  set by: in.jsonl:10\n"
    )
    assert not answered.exists()
    asked.write_text("{x\n" * 25)
    assert run() == ExitCode.REFUSED
    assert "dovetail: error: and 5 more lines\n  set by: in.jsonl\n" in capsys.readouterr().err
    asked.write_text("\n")
    assert run() == ExitCode.REFUSED
    assert "in.jsonl has no request" in capsys.readouterr().err
    asked.unlink()
    assert run() == ExitCode.REFUSED
    assert "in.jsonl cannot be read: no such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["my notes", "my notes\n", '{"custom_id": 1}', '{"custom_id": "z", "response": null}\n'])
def test_a_file_that_is_another_s_is_left_alone(files, content, capsys):
    asked, answered = files
    asked.write_text(request("a"))
    answered.write_text(content)
    assert run() == ExitCode.REFUSED
    assert answered.read_text() == content
    assert "name another file with --output-file" in capsys.readouterr().err


def test_one_file_cannot_be_both_nor_be_written_twice(files, capsys):
    asked, answered = files
    asked.write_text(request("a"))
    assert main(["run-batch", "-i", "in.jsonl", "-o", str(asked)]) == ExitCode.REFUSED
    assert "requests and answers cannot be one file" in capsys.readouterr().err
    with answered.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert run() == ExitCode.REFUSED
    assert "another run is writing to out.jsonl" in capsys.readouterr().err
    assert main(["run-batch", "-i", "in.jsonl", "-o", "/no/folder/x"]) == ExitCode.FAILED
    assert "/no/folder/x cannot be written: no such file or directory" in capsys.readouterr().err


@pytest.fixture
def server(monkeypatch):
    """A server that is a function of a request's body, and silent where it gives None; pauses are noted instead of slept."""
    pauses, real = [], httpx.AsyncClient

    async def sleep(seconds):
        pauses.append(seconds)

    def serve(function):
        async def handler(request):
            if request.url.path == "/v1/models":
                return httpx.Response(200, json={"data": [{"id": "m"}]})
            answer = function(json.loads(request.content))
            if answer is None:
                await asyncio.Event().wait()
            return answer

        monkeypatch.setattr(httpx, "AsyncClient", lambda **more: real(transport=httpx.MockTransport(handler), **more))
        return pauses

    monkeypatch.setattr(batch.asyncio, "sleep", sleep)
    return serve


def test_a_busy_server_is_asked_again(files, server):
    asked, answered = files
    asked.write_text(
        request("a", TEXT, prompt="p")
        + request("b", TEXT, prompt="lost")
        + request("c", TEXT, prompt="slow")
        + request("d", TEXT, prompt="web")
    )
    said = [httpx.Response(429, headers={"retry-after": "7"}), httpx.Response(503), httpx.Response(200, json={"usage": None})]

    def function(body):
        assert body["model"] == "m"
        if body["prompt"] == "slow":
            raise httpx.ReadTimeout("slow")
        if body["prompt"] == "lost":
            raise httpx.RemoteProtocolError("it broke off")
        if body["prompt"] == "web":
            return httpx.Response(502, text="<html>")
        return said.pop(0)

    pauses = server(function)
    assert run("--concurrency", "1", "--timeout", "5") == ExitCode.FAILED
    found = answers(answered)
    assert found["a"]["response"]["status_code"] == 200
    assert (found["b"]["response"], found["b"]["error"]) == (None, {"code": "connection_error", "message": "it broke off"})
    assert found["c"]["error"] == {"code": "request_timeout", "message": "no answer within 5 s"}
    assert found["d"]["error"] == {"code": "invalid_response", "message": "status 502, and no JSON: <html>"}
    assert pauses == [7.0, 14.0, 0.5, 1.0, 2.0, 4.0]


def test_a_server_that_stays_busy_is_asked_for_as_long_as_an_answer_may_take(files, server, monkeypatch):
    asked, answered = files
    asked.write_text(request("a"))
    left = [20]

    def function(body):
        left[0] -= 1
        busy = httpx.Response(429, headers={"retry-after": "1"}, json={})
        return busy if left[0] else httpx.Response(200, json={})

    pauses = server(function)
    monkeypatch.setattr(batch, "time", SimpleNamespace(monotonic=lambda: sum(pauses)))
    assert run() == ExitCode.OK
    assert answers(answered)["a"]["response"]["status_code"] == 200
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, *[30.0] * 14]

    answered.unlink()
    left[0] = -1
    pauses.clear()
    assert run("--timeout", "60") == ExitCode.FAILED
    assert answers(answered)["a"]["response"]["status_code"] == 429
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0]


def test_ctrl_c_keeps_what_is_done(files, server, capsys):
    asked, answered = files
    asked.write_text("".join(request(str(number), TEXT, prompt=str(number)) for number in range(5)))

    def function(body):
        if body["prompt"] == "2":
            os.kill(os.getpid(), signal.SIGINT)
            return None
        return httpx.Response(200, json={})

    usual = signal.getsignal(signal.SIGINT)
    server(function)
    assert run("--concurrency", "1") == 130
    assert signal.getsignal(signal.SIGINT) is usual
    assert set(answers(answered)) == {"0", "1"}
    assert "out.jsonl: 2 of 5 requests are answered; stopped: the same command does the rest\n" in capsys.readouterr().err
    server(lambda body: httpx.Response(200, json={}))
    assert run() == ExitCode.OK
    assert set(answers(answered)) == {"0", "1", "2", "3", "4"}


def test_a_server_that_goes_ends_the_batch(files, server, capsys):
    asked, answered = files
    asked.write_text(request("a", TEXT, prompt="good") + request("b", TEXT, prompt="bad"))

    def function(body):
        if body["prompt"] == "bad":
            raise httpx.ConnectError("Connection refused")
        return httpx.Response(200, json={})

    server(function)
    assert run("--concurrency", "1") == ExitCode.FAILED
    assert set(answers(answered)) == {"a"}
    assert capsys.readouterr().err.splitlines()[:2] == [
        "out.jsonl: 1 of 2 requests are answered; the same command does the rest",
        "dovetail: error: no server answers at http://127.0.0.1:9: connection refused",
    ]


def test_a_certificate_that_nobody_trusts_is_told(files, server, capsys):
    asked, _ = files
    asked.write_text(request("a", TEXT, prompt="x"))

    def function(body):
        raise httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate")

    server(function)
    assert run() == ExitCode.FAILED
    assert capsys.readouterr().err.splitlines()[1:] == [
        "dovetail: error: the certificate of http://127.0.0.1:9 is not trusted",
        "  set by: --url",
        "  remedy: name the file of whoever signed it, PEM: SSL_CERT_FILE=ca.pem",
        "  remedy: check that --url names the host it is made for",
    ]
