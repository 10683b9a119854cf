"""The backend in a real server: chosen on the command line, asked over HTTP."""

import json
import signal
import subprocess
import sys
import urllib.request

SERVE = [sys.executable, "-m", "core.serve", "--backend", "numpy", "--model", "random:tiny"]


def explained(*flags):
    return subprocess.run([*SERVE, *flags, "--explain"], capture_output=True, text=True, check=False)


def test_it_answers():
    process = subprocess.Popen([*SERVE, "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        address = next(line.split()[-1] for line in iter(process.stdout.readline, "") if line.startswith("listening on "))
        asked = {"prompt": [5, 6, 7], "max_tokens": 8, "ignore_eos": True, "logprobs": 2}
        answers = [complete(address, temperature=0, **asked), complete(address, temperature=1, seed=1, **asked)]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0
    for answer in answers:
        assert answer["usage"]["completion_tokens"] == 8
        assert all(logprob <= 0 for logprob in answer["choices"][0]["logprobs"]["token_logprobs"])


def complete(address, **body):
    call = urllib.request.Request(
        f"{address}/v1/completions", data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(call, timeout=60) as answer:
        return json.load(answer)


def test_it_says_what_it_is_and_refuses_what_it_is_not():
    plan = explained()
    assert plan.returncode == 0, plan.stderr
    assert "on a CPU the compute backend numpy does not compute in bfloat16" in plan.stdout
    assert "those of numpy are lent to it, without a copy" in plan.stdout
    other_device = explained("--device", "cuda")
    assert other_device.returncode == 2
    assert "the compute backend numpy runs on cpu, not on cuda" in other_device.stderr
