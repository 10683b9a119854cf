"""The examples run as they stand, and what the terminal does with a real server, one for all of them."""

import importlib.util
import json
from pathlib import Path

import pytest

from core.errors import ExitCode
from frontends.cli.main import main
from frontends.cli.own_server import own_server

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL = "random:tiny"


@pytest.fixture(scope="module")
def url():
    with own_server(MODEL, ["--max-model-len", "512"]) as url:
        yield url


def example(name, *arguments):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(list(arguments))


def test_openai_client(url, capsys):
    example("openai_client", "--url", f"{url}/v1")
    out = capsys.readouterr().out
    assert "answer: " in out
    assert "stream: " in out
    assert "completion: " in out
    assert out.endswith("tokens: 16\n")


def test_langchain_chat(url, capsys):
    example("langchain_chat", "--url", url, "--model", MODEL)
    out = capsys.readouterr().out
    assert all(f"{word}: " in out for word in ("answer", "stream", "tea", "rain"))


def test_async_llm(capsys):
    example("async_llm", "--model", MODEL)
    out = capsys.readouterr().out
    assert all(f"{word}: " in out for word in ("stream", "snow", "rain", "tea"))
    assert out.endswith("cancelled, still running: 0\n")


def test_offline_batch(tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\ntwo\n")
    example("offline_batch", str(prompts), "--model", MODEL, "--max-tokens", "4")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prompt"] for line in lines] == ["one", "two"]


def test_a_batch_through_a_real_server(url, tmp_path, capsys):
    asked, answered = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    bodies = [{"prompt": [5, 6, number], "max_tokens": 8, "ignore_eos": True} for number in range(20)]
    requests = [("/v1/completions", body) for body in bodies] + [("/v1/embeddings", {"input": "snow"})]
    asked.write_text(
        "".join(
            json.dumps({"custom_id": str(number), "method": "POST", "url": url, "body": body}) + "\n"
            for number, (url, body) in enumerate(requests)
        )
    )
    assert main(["run-batch", "-i", str(asked), "-o", str(answered), "--url", url, "--concurrency", "7"]) == ExitCode.OK
    found = {int(line["custom_id"]): line["response"]["body"] for line in map(json.loads, answered.read_text().splitlines())}
    assert len(found.pop(20)["data"][0]["embedding"]) == 64
    assert set(found) == set(range(20))
    assert {body["usage"]["completion_tokens"] for body in found.values()} == {8}
    assert "21 of 21 requests are answered" in capsys.readouterr().err


def test_the_same_text_is_completed_streamed_and_whole(url, capsys):
    given = ["complete", "hello", "--url", url, "--max-tokens", "8", "--temperature", "0"]
    assert main(given) == ExitCode.OK
    streamed = capsys.readouterr().out
    assert main([*given, "--json"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out)["choices"][0]["text"] == streamed.removesuffix("\n")
