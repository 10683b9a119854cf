"""doctor, collect-env and completion: what they find and what they print. No framework is imported here."""

import json
import os
import re
import socket
import subprocess

import pytest

import core.compose.probe
from core.compose.probe import DeviceProbe, Gpu
from core.errors import ExitCode
from frontends.cli import doctor, environment, host_findings, machine
from frontends.cli.findings import Finding, lines
from frontends.cli.main import main

GIB = 1 << 30
CPU = DeviceProbe("a processor", 2, ("avx2",), 16 * GIB, 8 * GIB)


class Imported:
    """A framework's child that has answered."""

    name = "torch"

    def __init__(self, answer):
        self.answer = answer

    def found(self):
        return self.answer

    def close(self):
        pass


GOOD = Imported({"version": "2.13.0", "seconds": 1.0, "built_for_cuda": None, "cuda": False})


@pytest.fixture
def probe(monkeypatch):
    def answer(found):
        monkeypatch.setenv(core.compose.probe.VARIABLE, found.to_json())

    answer(CPU)
    return answer


@pytest.fixture
def no_child(monkeypatch):
    monkeypatch.setattr(machine, "Framework", lambda name: GOOD)


def by_about(findings):
    return {each.about: each for each in findings}


def test_a_machine_that_is_well(probe, no_child, capsys):
    assert main(["doctor", "--model", "random:tiny", "--port", "0", "--json"]) == ExitCode.OK
    found = {each["about"]: each for each in json.loads(capsys.readouterr().out)}
    assert {
        name: found[name]["state"] for name in ("python", "plugins", "configuration", "tokenizer", "torch", "gpu")
    } == dict.fromkeys(("python", "plugins", "configuration", "tokenizer", "torch", "gpu"), "ok")
    assert found["memory"]["what"] == "8.0 of 16.0 GiB are free"
    assert found["torch"]["what"] == "2.13.0, for CPUs, imported in 1.0 s"


def test_every_rule_that_is_broken_is_a_finding_with_its_remedies(probe, no_child, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["doctor", "--model", "random:tiny", "--max-model-len", "99999", "--device", "cuda"]) == ExitCode.FAILED
        refused = capsys.readouterr().out
        assert main(["doctor", "--model", "random:tiny", "--port", str(port)]) == ExitCode.FAILED
        busy = capsys.readouterr().out
    assert "max_model_len 99999 is beyond the 2048 positions of random:tiny (set by --max-model-len, --model)\n" in refused
    assert re.search(r"^ +remedy: --max-model-len 2048$", refused, re.MULTILINE)
    assert refused.count("\nfail  configuration") == 2
    assert f"{port} on 127.0.0.1 is in use by " in busy
    assert f"process {os.getpid()}\n" in busy
    assert "remedy: --openai-http-port 0 to have a free one picked, or stop the program that has it\n" in busy
    assert busy.endswith("1 to mend\n")


def test_a_model_that_is_not_here_is_stood_in_for(probe, tmp_path):
    flags = ["--model-cache", str(tmp_path), "--port", "0"]
    findings = list(doctor.examine(flags, GOOD))
    assert next(each for each in findings if each.about == "model") == Finding(
        "warn", "model", "demo is not here: the first start fetches it", ("fetch it now: dovetail models pull demo",)
    )
    assert "configuration" in by_about(findings)
    assert "tokenizer" not in by_about(findings)
    assert list(tmp_path.iterdir()) == []


def test_wrong_words_and_broken_plugins(probe, capsys, monkeypatch, no_child):
    monkeypatch.setenv("DOVETAIL_PROT", "1")
    assert main(["doctor", "--modle", "demo", "--model", "random:tiny"]) == ExitCode.FAILED
    out = capsys.readouterr().out
    assert re.search(r"^fail  configuration +there is no flag --modle; did you mean '--model'\?", out, re.MULTILINE)
    assert "DOVETAIL_PROT" in out
    monkeypatch.delenv("DOVETAIL_PROT")
    assert main(["doctor", "--model", "nope"]) == ExitCode.FAILED
    assert "fail  configuration   there is no model 'nope': it is no folder" in capsys.readouterr().out
    assert main(["doctor", "--config", "/no/such.toml"]) == ExitCode.FAILED
    assert "/no/such.toml" in capsys.readouterr().out


def test_frameworks():
    def state(found, on_cuda):
        [finding] = host_findings.framework_state("torch", found, on_cuda=on_cuda)
        return finding.state, finding.what

    cuda = {"version": "2.13", "seconds": 1.5, "built_for_cuda": "12.8", "cuda": True}
    assert state(cuda, True) == ("ok", "2.13, for CUDA 12.8, imported in 1.5 s")
    assert state(cuda | {"cuda": False}, True)[0] == "fail"
    assert state(GOOD.answer, True) == ("warn", "2.13.0, for CPUs, imported in 1.0 s: it cannot use the GPU")
    assert state({"error": "OSError: libfoo.so"}, False) == ("fail", "cannot be imported: OSError: libfoo.so")
    assert state({}, False) == ("warn", "its import did not end in 10 s")


def test_a_framework_is_asked_in_a_child_that_may_fail_or_hang(tmp_path, monkeypatch):
    for name, code in (("broken_one", "raise OSError('no such library')"), ("slow_one", "import time; time.sleep(60)")):
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    broken, slow = machine.Framework("broken_one"), machine.Framework("slow_one", timeout=0.2)
    assert slow.found() == {}
    assert slow._child.poll() is not None
    assert broken.found() == {"error": "OSError: no such library"}


def test_devices_compilers_and_ports(monkeypatch, tmp_path):
    [gpu] = host_findings.devices(DeviceProbe("cpu", 1, (), 1, 1, (Gpu("H100", 9.0, 80 * GIB, 79 * GIB),)))
    assert (gpu.about, gpu.what) == ("gpu 0", "H100, compute capability 9.0, 79.0 of 80.0 GiB are free")
    [sick] = host_findings.devices(DeviceProbe("cpu", 1, (), 1, 1, (), "the CUDA driver does not start: error 999"))
    assert sick.state == "warn"
    monkeypatch.setattr(machine, "nvidia_driver", lambda: "550.54")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    [hidden] = host_findings.devices(CPU)
    assert (hidden.state, hidden.remedies) == ("warn", ("unset CUDA_VISIBLE_DEVICES",))
    compiler = tmp_path / "cxx"
    compiler.write_text("#!/bin/sh\necho 'fatal error: cmath: no such file' >&2\nexit 1\n")
    compiler.chmod(0o755)
    [finding] = host_findings.compiling(str(compiler))
    assert finding.what == f"{compiler} makes no native kernels: fatal error: cmath: no such file"
    assert host_findings.port("openai_http", "port", "no.such.host.invalid", 80).state == "fail"


def test_findings_are_coloured_on_terminals_only():
    findings = [Finding("fail", "disk", "is full", ("free some",))]
    assert list(lines(findings, False)) == [
        "fail  disk            is full", f"{'':22}remedy: free some", "", "0 ok, 0 to look at, 1 to mend"
    ]  # fmt: skip
    assert next(iter(lines(findings, True))) == "\033[1;31mfail\033[0m  disk            is full"


# --- collect-env --------------------------------------------------------------------------------------------------------


def test_a_report_has_what_helps_and_no_secret(probe, no_child, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijkl")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:hidden@proxy:3128")
    monkeypatch.setenv("DOVETAIL_OPENAI_HTTP__API_KEY", "swordfish")
    monkeypatch.setenv("UNRELATED", "my own affair")
    flags = ["--model", "random:tiny", "--api-key", "open-sesame", "--port", "0"]
    assert main(["collect-env", *flags]) == ExitCode.OK
    text = capsys.readouterr().out
    for secret in ("hf_abcdefghijkl", "hidden", "swordfish", "open-sesame", "my own affair"):
        assert secret not in text
    assert "| processor | a processor, 2 cores of " in text
    assert "HTTPS_PROXY=http://***@proxy:3128\n" in text
    assert "doctor --model random:tiny --api-key *** --port 0" in text
    assert "compute backend    torch" in text
    assert text.count("<details>") == text.count("</details>") == 5
    assert main(["collect-env", "--json"]) == ExitCode.OK
    report = json.loads(capsys.readouterr().out)
    assert report["torch"]["version"] == "2.13.0"
    assert report["packages"]["pydantic"]
    assert {each["name"] for each in report["plugins"]} >= {"plain", "openai_http"}
    assert report["composition"] is None


def test_masks(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert environment.masked("/home/ada/models --hf-token=abc sk-12345678") == "~/models --hf-token=*** ***"
    found = environment.variables({"FD_API_KEY": "a", "FD_MODEL_SOURCE": "b", "PATH": "c", "NO_COLOR": "1"})
    assert found == {"FD_API_KEY": "***", "FD_MODEL_SOURCE": "b", "NO_COLOR": "1"}


# --- completion ---------------------------------------------------------------------------------------------------------


def completed(script, *words):
    code = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); _dovetail; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", code, "bash", script, *words], capture_output=True, text=True, timeout=30, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_commands_flags_and_values(capsys, tmp_path):
    assert main(["completion", "bash"]) == ExitCode.OK
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    assert completed(script, "dovetail", "com") == ["complete", "completion"]
    assert completed(script, "dovetail", "models", "") == ["list", "pull", "verify"]
    assert completed(script, "dovetail", "serve", "--quantization", "wint") == ["wint4", "wint8"]
    assert completed(script, "dovetail", "serve", "--log-level", "w") == ["warning"]
    assert completed(script, "dovetail", "run-batch", "--retry") == ["--retry-failed"]
    assert completed(script, "dovetail", "bench", "--again") == ["--against"]
    assert "--max-model-len" in completed(script, "dovetail", "chat", "--max")
    assert completed(script, "dovetail", "completion", "f") == ["fish"]


def test_other_shells(capsys):
    assert main(["completion", "zsh"]) == ExitCode.OK
    assert capsys.readouterr().out.startswith("autoload -U +X bashcompinit && bashcompinit\n# dovetail: completion for zsh\n")
    assert main(["completion", "fish"]) == ExitCode.OK
    fish = capsys.readouterr().out
    assert "complete -c dovetail -n '__fish_seen_subcommand_from models' -a verify -d " in fish
    assert "-l log-level -x -a 'debug info warning error'\n" in fish
