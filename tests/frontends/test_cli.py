"""The dovetail command, as a process against a served fake; on a terminal of its own where that matters."""

import argparse
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time

import httpx
import pytest

from core.errors import ExitCode, UserError
from frontends.cli import own_server
from frontends.cli.client import Client
from frontends.cli.main import COMMANDS, main
from frontends.cli.options import api_key
from tests.frontends.conftest import ROOT, serving
from tests.frontends.fake_service import ANSWER


def dovetail(*arguments, typed=""):
    return subprocess.run(  # noqa: PLW1510 - what it returns is what is tested
        [sys.executable, "-m", "frontends.cli.main", *arguments],
        cwd=ROOT,
        input=typed,
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_help_is_quick_and_light():
    code = (
        "import sys, time; began = time.process_time()\n"
        "from frontends.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'httpx', 'fastapi', 'rich', 'pydantic', 'core.compose'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy), 'quick:', time.process_time() - began < 0.3)\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    assert "heavy: [] quick: True" in shown.stdout
    for command in COMMANDS:
        assert re.search(rf"^    {command} ", shown.stdout, re.MULTILINE)


def test_one_question(served):
    answered = dovetail("chat", "--url", f"{served.url}/v1", "-q", "What is the capital of France?")
    assert (answered.stdout, answered.stderr, answered.returncode) == (f"{ANSWER}\n", "", 0)


def test_a_conversation_in_a_pipe_is_bare_text():
    with serving() as served:
        typed = "/system be brief\nhello\n\n/nonsense\n/reset\nagain\n/exit\nnever asked\n"
        answered = dovetail("chat", "--url", served.url, "--max-tokens", "5", typed=typed)
    assert answered.stdout == "Paris\nParis\n"
    assert answered.stderr == "there is no /nonsense: /help lists what there is\n"


def test_the_conversation_is_remembered_until_it_is_reset(monkeypatch, capsys, served, tmp_path):
    monkeypatch.chdir(tmp_path)
    asked, set_to = [], []
    original = Client.stream

    def stream(self, path, body):
        asked.append([(message["role"], message["content"]) for message in body["messages"]])
        set_to.append(body.get("top_k"))
        return original(self, path, body)

    monkeypatch.setattr(Client, "stream", stream)
    lines = iter(["one", "two", "/retry", "/undo", "/reset", "three", "/system new", "/set top_k 3", "four", "/save talk.json"])
    monkeypatch.setattr("builtins.input", lambda label: next(lines, None) or (_ for _ in ()).throw(EOFError))
    assert main(["chat", "--url", served.url, "--system-prompt", "old", "--max-tokens", "2"]) == ExitCode.OK
    assert asked == [
        [("system", "old"), ("user", "one")],
        [("system", "old"), ("user", "one"), ("assistant", "Pa"), ("user", "two")],
        [("system", "old"), ("user", "one"), ("assistant", "Pa"), ("user", "two")],
        [("system", "old"), ("user", "three")],
        [("system", "new"), ("user", "four")],
    ]
    assert set_to == [None, None, None, None, 3]
    assert [message["content"] for message in json.loads((tmp_path / "talk.json").read_text())] == ["new", "four", "Pa"]


def test_what_cannot_be_typed(monkeypatch, capsys, served):
    lines = iter(["/undo", "/set heat 1", "/save /no/such/folder/x"])
    monkeypatch.setattr("builtins.input", lambda label: next(lines, None) or (_ for _ in ()).throw(EOFError))
    assert main(["chat", "--url", served.url]) == ExitCode.FAILED
    assert capsys.readouterr().err == (
        "nothing was asked yet\n"
        "there is no heat to set: max_tokens, temperature, top_p, top_k, min_p, repetition_penalty, seed, stop\n"
        "dovetail: error: the conversation cannot be written to /no/such/folder/x: no such file or directory\n"
        "  set by: /save\n"
    )


def test_complete(served, monkeypatch, capsys, tmp_path):
    def completed(*arguments, piped=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(piped))
        assert main(["complete", *arguments, "--url", served.url, "--max-tokens", "3"]) == ExitCode.OK
        return capsys.readouterr().out

    file = tmp_path / "prompt.txt"
    file.write_text("from a file\n")
    assert completed("France") == completed("-q", "France") == completed("--file", str(file)) == "Par\n"
    assert completed(piped="one\ntwo\n") == "Par\n"
    assert completed("--lines", piped="one\n\ntwo\n") == "Par\nPar\n"
    assert completed("--echo", piped="one\ntwo\n") == "one\ntwoPar\n"
    answer = json.loads(completed("France", "--json", "--logprobs", "1", "--stop", "r", "--seed", "3"))
    assert answer["choices"][0]["text"] == "Pa"
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == 2


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["text", "-q", "text"], "several texts are given\n  remedy: give one: as TEXT, with --quick, or with --file"),
        (["text", "--logprobs", "1"], "log-probabilities are printed as JSON only\n  set by: --logprobs\n  remedy: add --json"),
        (["-f", "/no/file"], "/no/file cannot be read: no such file or directory\n  set by: --file\n  remedy: check the path"),
    ],
)
def test_texts_that_cannot_be_completed(arguments, error, capsys):
    assert main(["complete", *arguments]) == ExitCode.REFUSED
    assert capsys.readouterr().err == f"dovetail: error: {error}\n"


def test_a_text_among_the_flags_of_an_own_server():
    from frontends.cli.completing import _read

    for arguments in (["hi", "--model", "demo", "--dtype", "float32"], ["--model", "demo", "--dtype=float32", "hi"]):
        options, texts, flags = _read(arguments)
        assert (options.model, texts, " ".join(flags).replace("=", " ")) == ("demo", ["hi"], "--dtype float32")


def test_plugins_as_json(capsys):
    assert main(["plugins", "--json"]) == ExitCode.OK
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)["plugins"]}
    assert (found["plain"]["state"], found["plain"]["error"]) == ("loaded", "")
    assert {"kind": "sampler", "name": "standard"}.items() <= found["sampler_standard"]["offers"][0].items()


def test_a_command_that_there_is_not(capsys):
    with pytest.raises(SystemExit):
        main(["complet"])
    assert "there is no command 'complet'; did you mean 'complete'?" in capsys.readouterr().err


def test_no_server_is_told_with_remedies():
    failed = dovetail("chat", "--url", "http://127.0.0.1:9", "-q", "x")
    assert failed.returncode == ExitCode.FAILED
    assert failed.stdout == ""
    assert failed.stderr == (
        "dovetail: error: no server answers at http://127.0.0.1:9\n"
        "  set by: --url\n"
        "  remedy: start one: dovetail serve\n"
        "  remedy: name another with --url\n"
        "  remedy: or talk without one: --model demo\n"
    )


@pytest.mark.parametrize(
    ("answer", "what", "remedy"),
    [
        (
            httpx.Response(401, json={"error": {"message": "no key"}}),
            "the server at https://x wants a key",
            "give it with --api-key, or in $OPENAI_API_KEY",
        ),
        (
            httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"),
            "the certificate of https://x is not trusted",
            "name the file of whoever signed it, PEM: SSL_CERT_FILE=ca.pem",
        ),
    ],
)
def test_a_server_that_is_there_and_cannot_be_used(answer, what, remedy):
    def answered(request):
        if isinstance(answer, Exception):
            raise answer
        return answer

    client = Client("https://x/v1")
    client._http = httpx.Client(base_url=client.url, transport=httpx.MockTransport(answered))
    with client, pytest.raises(UserError) as refused:
        client.first_model()
    [problem] = refused.value.problems
    assert (problem.what, problem.remedies[0]) == (what, remedy)


@pytest.mark.parametrize("url", ["nonsense", "ftp://127.0.0.1", ""])
def test_an_address_that_is_none(url, capsys):
    assert main(["chat", "--url", url, "-q", "x"]) == ExitCode.REFUSED
    assert capsys.readouterr().err.splitlines()[0] == f"dovetail: error: {url!r} is no address of a server"


def test_what_the_server_refuses_is_told(served):
    refused = dovetail("chat", "--url", served.url, "-q", "x", "--temperature", "-1")
    assert refused.returncode == ExitCode.FAILED
    assert (
        refused.stderr.splitlines()[0]
        == "dovetail: error: the server refused: temperature must be a number in [0, 100], got -1.0"
    )
    unknown = dovetail("complete", "--url", served.url, "-q", "x", "--model-name", "other")
    assert "the model 'other' is not served here" in unknown.stderr


def test_a_server_of_another_kind_is_told(served, monkeypatch, capsys):
    import httpx

    monkeypatch.setattr(httpx.Client, "get", lambda self, path: httpx.Response(200, text="<html>"))
    assert main(["chat", "--url", served.url, "-q", "x"]) == ExitCode.FAILED
    assert capsys.readouterr().err.startswith(f"dovetail: error: what answers at {served.url} does not speak the OpenAI API\n")


def test_flags_nobody_knows_are_refused():
    refused = dovetail("chat", "--dtype", "float32")
    assert refused.returncode == ExitCode.REFUSED
    assert "unrecognized arguments: --dtype float32 (flags of `serve` go with --model)" in refused.stderr


def test_a_key_is_shown_to_the_server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "from the environment")
    assert api_key(argparse.Namespace(api_key=None)) == "from the environment"
    assert api_key(argparse.Namespace(api_key="a flag's")) == "a flag's"
    with Client("http://127.0.0.1:9", "secret") as client:
        assert client._http.headers["authorization"] == "Bearer secret"


def on_a_terminal(arguments, expected, typed=()):
    """Type each text when the pattern before it has been seen; gives back all output and the exit code."""
    terminal, inner = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "frontends.cli.main", *arguments],
        cwd=ROOT,
        env={**os.environ, "TERM": "dumb"},
        stdin=inner,
        stdout=inner,
        stderr=inner,
        start_new_session=True,
    )
    os.close(inner)
    seen, at, typed = "", 0, list(typed)
    end = time.monotonic() + 20
    try:
        for pattern in expected:
            while (found := re.compile(pattern).search(seen, at)) is None:
                assert time.monotonic() < end, seen
                seen += os.read(terminal, 4096).decode(errors="replace")
            at = found.end()
            if typed:
                os.write(terminal, typed.pop(0))
        try:
            while chunk := os.read(terminal, 4096):
                seen += chunk.decode(errors="replace")
        except OSError:
            pass  # Linux's way to say that the other side has closed
    finally:
        os.close(terminal)
        code = process.wait(20)
    return seen, code


def test_on_a_terminal_there_are_prompts(served):
    seen, code = on_a_terminal(
        ["chat", "--url", served.url],
        [r"talking to fake at http://.*\n.*you> ", re.escape(ANSWER) + r"\s+.*you> ", r"Ctrl-D(.|\n)*you> "],
        [b"hello\n", b"/help\n", b"\x04"],
    )
    assert code == ExitCode.OK, seen


def test_an_own_server_is_started_with_the_flags_and_ended(monkeypatch, capfd):
    started = []
    original = subprocess.Popen

    def popen(command, **kwargs):
        started.append((command, original([sys.executable, "-m", "tests.frontends.fake_service", "{}"], cwd=ROOT, **kwargs)))
        return started[0][1]

    monkeypatch.setattr(own_server.subprocess, "Popen", popen)
    assert main(["chat", "--model", "demo", "--dtype", "float32", "-q", "hi", "--port", "5"]) == ExitCode.OK
    [(command, process)] = started
    assert " ".join(command[1:]) == ("-P -m frontends.cli.served --model demo --dtype float32 --port 5 --log-level warning")
    assert process.returncode == 0
    assert process.stdin.closed
    assert capfd.readouterr().out == f"{ANSWER}\n"


def test_an_own_server_ends_with_whoever_started_it():
    """Nobody has said a word: its standard input closes, as it does when the other is killed."""
    code = (
        "from frontends.cli.served import hold_lifeline; hold_lifeline(); import signal; print(1, flush=True); signal.pause()"
    )
    server = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with server:
        assert server.stdout.read(1) == b"1"
        assert server.poll() is None
        server.stdin.close()
        assert server.wait(20) == -signal.SIGTERM


def test_an_own_server_that_does_not_start_is_told(monkeypatch, capfd):
    original = subprocess.Popen

    def popen(command, **kwargs):
        return original([sys.executable, "-c", "print('half a sentence'); raise SystemExit(2)"], **kwargs)

    monkeypatch.setattr(own_server.subprocess, "Popen", popen)
    assert main(["chat", "--model", "nonsense", "-q", "hi"]) == ExitCode.REFUSED
    assert capfd.readouterr().err == (
        "half a sentence\ndovetail: error: the model's server did not start; its reason is above\n  set by: --model\n"
    )
