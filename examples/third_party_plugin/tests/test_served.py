"""The plugin in a real server: chosen on the command line, asked over HTTP."""

import json
import signal
import subprocess
import sys
import urllib.request
from contextlib import contextmanager

SERVE = [sys.executable, "-m", "core.serve", "--plugins", "sampler_top_nsigma", "--model", "random:tiny", "--dtype", "float32"]


def run(*flags):
    return subprocess.run([*SERVE, *flags], capture_output=True, text=True, check=False)


@contextmanager
def server(*flags):
    """The address of a running server, which is stopped as a supervisor stops it."""
    process = subprocess.Popen([*SERVE, "--port", "0", *flags], stdout=subprocess.PIPE, text=True)
    try:
        lines = iter(process.stdout.readline, "")
        yield next(line.split()[-1] for line in lines if line.startswith("listening on "))
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0


def complete(address, **body):
    call = urllib.request.Request(
        f"{address}/v1/completions",
        data=json.dumps({"prompt": [5, 6, 7], "max_tokens": 16, **body}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(call, timeout=60) as answer:
        return json.load(answer)


def test_it_is_listed_and_explained():
    listed = subprocess.run(
        [sys.executable, "-m", "core.serve", "--list-plugins"], capture_output=True, text=True, check=True
    ).stdout
    assert "sampler_top_nsigma" in listed
    assert "dovetail-sampler-top-nsigma 0.1.0" in listed
    explained = run("--explain", "--sampler-top-nsigma-n-sigma", "1.5")
    assert explained.returncode == 0, explained.stderr
    assert "top_nsigma" in explained.stdout
    assert "1.5" in explained.stdout


def test_it_answers():
    with server("--sampler-top-nsigma-n-sigma", "0.8") as address:
        sampled = [complete(address, seed=seed, temperature=5.0) for seed in (1, 1, 2)]
        assert sampled[0]["usage"]["completion_tokens"] == 16
        texts = [answer["choices"][0]["text"] for answer in sampled]
        assert texts[0] == texts[1]
        assert texts[0] != texts[2]


def test_a_useless_threshold_is_warned_about():
    warned = run("--explain", "--sampler-top-nsigma-n-sigma", "9")
    assert warned.returncode == 0
    assert "n_sigma 9 keeps nearly every token: the threshold does nothing there" in warned.stdout + warned.stderr


def test_an_impossible_threshold_is_refused():
    refused = run("--explain", "--sampler-top-nsigma-n-sigma", "0")
    assert refused.returncode == 2
    assert "sampler_top_nsigma.n_sigma" in refused.stderr
