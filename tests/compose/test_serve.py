"""What a user sees: `python -m core.serve` in a process of its own, with plugins installed as real distributions on disk."""

import os
import re
import resource
import subprocess
from pathlib import Path

import pytest

import core.serve
from tests.compose.fakes import CPU, PYTHON, install

ROOT = Path(__file__).parents[2]
HOUSE = """
from core.hookspecs import hookimpl
from core.interfaces.rules import Condition, Remedy, Rule
from core.offers import RulesOffer

@hookimpl
def register_rules():
    yield RulesOffer(name="{name}", summary="house rules", rules=(
        Rule(id="{name}-seqs", when=(Condition("settings.max_num_seqs", ">", 64),),
             reason="this cluster allows 64 sequences, not {{settings.max_num_seqs}}",
             remedies=(Remedy("--max-num-seqs 64", {{"max_num_seqs": 64}}),)),))
"""
SAMPLER = """
from pydantic import Field
from core.hookspecs import hookimpl
from core.offers import SamplerOffer, Section

class Settings(Section, frozen=True):
    mass: float = Field(0.9, description="mass")

@hookimpl
def register_samplers():
    yield SamplerOffer(name="{name}", summary="a sampler", frameworks=frozenset({{"torch"}}), settings=Settings, create=print)
"""


def run(*argv, path=None, cwd=ROOT, module="core.serve", flags=(), **env):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DOVETAIL_", "FD_"))}
    environment |= {"DOVETAIL_DEVICE_PROBE": CPU.to_json(), "COLUMNS": "120", **env}
    environment["PYTHONPATH"] = os.pathsep.join(str(each) for each in (path, ROOT) if each)
    return subprocess.run(
        [PYTHON, *flags, "-m", module, *argv],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        cwd=cwd,
        timeout=120,
    )


def refused(*argv, **more):
    done = run("--model", "random:tiny", *argv, **more)
    assert (done.returncode, done.stdout) == (2, ""), done
    return done.stderr


def test_one_wrong_plugin_name():
    assert refused("--plugins", "opnai_http,plain", "--explain") == (
        "dovetail: error: there is no plugin 'opnai_http'; did you mean 'openai_http'?\n"
        "  set by: --plugins\n"
        "  remedy: --list-plugins shows what is installed\n"
    )


def test_one_broken_third_party_plugin(tmp_path):
    install(tmp_path, "acme-house", "acme", "import acme_kernels\n", version="2.1")
    assert refused("--explain", path=tmp_path, DOVETAIL_PLUGINS="acme") == (
        "dovetail: error: plugin acme of acme-house 2.1 (acme_house_acme) is broken: "
        "ModuleNotFoundError: No module named 'acme_kernels' (acme_house_acme, line 1)\n"
        "  set by: $DOVETAIL_PLUGINS\n"
        "  remedy: mend or reinstall acme-house\n"
        "  remedy: leave the plugin out: --without acme\n"
    )


def test_the_same_plugin_merely_installed_is_one_warning_line(tmp_path):
    install(tmp_path, "acme-house", "acme", "import acme_kernels\n", version="2.1")
    done = run("--model", "random:tiny", "--dump-config", path=tmp_path)
    assert done.returncode == 0
    assert done.stderr == (
        "dovetail: warning: plugin acme of acme-house 2.1 (acme_house_acme) is broken and left out: "
        "ModuleNotFoundError: No module named 'acme_kernels' (acme_house_acme, line 1)\n"
    )
    assert run("--model", "random:tiny", "--dump-config", "--without", "acme", path=tmp_path).stderr == ""
    listed = run("--list-plugins", path=tmp_path).stdout
    [line] = [line for line in listed.splitlines() if line.startswith("acme ")]
    assert line.split()[1] == "broken"


def test_two_plugins_with_one_name(tmp_path):
    install(tmp_path, "acme-house", "house", HOUSE.format(name="a"))
    install(tmp_path, "bolt-house", "house", HOUSE.format(name="b"), version="0.2")
    assert refused("--explain", path=tmp_path) == (
        "dovetail: error: 2 plugins are called 'house': acme-house 1.0 (acme_house_house); bolt-house 0.2 (bolt_house_house)\n"
        "  set by: installed distributions\n"
        "  remedy: uninstall one of them\n"
        "  remedy: leave both out: --without house\n"
    )
    assert run("--model", "random:tiny", "--dump-config", "--without", "house", path=tmp_path).returncode == 0


def test_two_offers_with_one_name(tmp_path):
    install(tmp_path, "acme-samplers", "one", SAMPLER.format(name="typical"))
    install(tmp_path, "bolt-samplers", "two", SAMPLER.format(name="typical"))
    assert refused("--explain", path=tmp_path) == (
        "dovetail: error: two plugins offer a sampler 'typical': one of acme-samplers 1.0 (acme_samplers_one); "
        "two of bolt-samplers 1.0 (bolt_samplers_two)\n"
        "  set by: installed distributions\n"
        "  remedy: leave one out: --without one, or --without two\n"
    )


def test_the_servers_port_is_none_for_the_metrics_alone():
    assert refused("--device", "cpu", "--port", "8123", "--metrics-port", "8123") == (
        "dovetail: error: --metrics-port 8123 is the server's own port, and is to be one for /metrics alone\n"
        "  set by: --metrics-port, --port\n"
        "  remedy: leave --metrics-port out: the server's own port has /metrics too\n"
        "  remedy: --metrics-port 0 to have a free one picked\n"
    )


def test_an_api_key_from_a_variable_that_is_not_set():
    assert refused("--device", "cpu", "--port", "0", "--api-key", "") == (
        "dovetail: error: no API key in --api-key: it is empty\n"
        "  set by: --api-key\n"
        "  remedy: --api-key KEY; if a shell variable has the key, see that it is set\n"
        "  remedy: leave --api-key out if everybody may ask\n"
    )


def test_one_unknown_key_in_a_section(tmp_path):
    (tmp_path / "demo.toml").write_text('model = "random:tiny"\n\n[openai_http]\nprot = 8000\n')
    assert refused("--config", "demo.toml", "--explain", cwd=tmp_path) == (
        "dovetail: error: plugin openai_http has no setting 'prot'; did you mean 'port'?\n"
        "  set by: demo.toml:4\n"
        "  remedy: its settings: host, port, metrics_port, api_server_count, max_request_bytes, max_concurrency, api_key, "
        "api_key_file, operator_key, priorities, requests_per_minute, tokens_per_minute, max_waiting_time, allowed_origins, "
        "allowed_methods, allowed_headers, "
        "allow_credentials, ssl_certfile, ssl_keyfile, access_log, otlp_traces_endpoint, compat, max_logprobs, "
        "trust_request_chat_template\n"
    )


def test_one_section_of_an_unloaded_plugin(tmp_path):
    install(tmp_path, "acme-samplers", "typical", SAMPLER.format(name="typical"))
    (tmp_path / "demo.toml").write_text('model = "random:tiny"\n\n[typical]\nmass = 0.5\n')
    expected = (
        "dovetail: error: settings are given for typical, which is installed but not chosen\n"
        "  set by: {origin}\n"
        "  remedy: add it: --plugins typical\n"
        "  remedy: drop these settings\n"
    )
    in_file = refused("--config", "demo.toml", "--explain", path=tmp_path, cwd=tmp_path)
    assert in_file == expected.format(origin="demo.toml:4")
    assert refused("--explain", path=tmp_path, DOVETAIL_TYPICAL__MASS="0.5") == expected.format(
        origin="$DOVETAIL_TYPICAL__MASS"
    )
    assert refused("--explain", "--typical-mass=0.5", path=tmp_path) == expected.format(origin="--typical-mass")
    cured = run("--config", "demo.toml", "--plugins", "typical", "--dump-config", path=tmp_path, cwd=tmp_path)
    assert (cured.returncode, cured.stderr) == (0, "")


def test_three_violated_rules_at_once(tmp_path):
    install(tmp_path, "acme-house", "house", HOUSE.format(name="house"))
    (tmp_path / "demo.toml").write_text("max_num_seqs = 100\nmax_model_len = 4096\n")
    argv = ["--config", "demo.toml", "--plugins", "house", "--device", "cuda", "--explain"]
    assert refused(*argv, path=tmp_path, cwd=tmp_path) == (
        "dovetail: error: max_model_len 4096 is beyond the 2048 positions of random:tiny\n"
        "  set by: demo.toml:2, --model\n"
        "  remedy: --max-model-len 2048\n"
        "dovetail: error: device is cuda, and this machine shows no CUDA device\n"
        "  set by: --device\n"
        "  remedy: --device cpu\n"
        "  remedy: check the driver (nvidia-smi) and CUDA_VISIBLE_DEVICES\n"
        "dovetail: error: this cluster allows 64 sequences, not 100\n"
        "  set by: demo.toml:1\n"
        "  remedy: --max-num-seqs 64\n"
    )


@pytest.mark.parametrize("action", ["--help", "--list-plugins"])
def test_help_and_list_answer_in_half_a_second_without_torch(action):
    program = (
        "import runpy, sys, time\n"
        f"sys.argv = ['serve', '{action}']\n"
        "try:\n    runpy.run_module('core.serve', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end:\n    assert end.code == 0, end.code\n"
        "heavy = {'torch', 'paddle', 'numpy', 'transformers', 'fastapi', 'pydantic_settings', 'tokenizers'}\n"
        "heavy &= set(sys.modules)\n"
        "print(f'heavy={sorted(heavy)}', file=sys.stderr)\n"
    )
    seconds = []
    for _ in range(3):
        # Processor time: it is what the answer takes on an idle machine, and what other tests on this one do not change.
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([PYTHON, "-c", program], check=False, capture_output=True, text=True, cwd=ROOT, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert (done.returncode, done.stderr) == (0, "heavy=[]\n")
        assert "openai_http" in done.stdout
    assert min(seconds) < 0.5


def test_version_needs_no_plugins(tmp_path):
    install(tmp_path, "acme-house", "acme", "raise SystemExit('imported')\n")
    done = run("--version", path=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("dovetail ")


def test_the_trace_prints_every_hook_call(tmp_path):
    install(tmp_path, "acme-samplers", "typical", SAMPLER.format(name="typical"))
    lines = run("--trace-plugins", "--list-plugins", path=tmp_path).stderr.splitlines()
    at = lines.index("dovetail: trace: typical: register_samplers()")
    assert lines[at + 1] == "dovetail: trace:   -> SamplerOffer 'typical': a sampler"
    assert "dovetail: trace: openai_http: register_front_ends()" in lines


def test_explaining_imports_no_torch():
    done = run("--model", "random:tiny", "--explain", flags=["-X", "importtime"])
    assert done.returncode == 0
    assert "model.architecture" in done.stdout
    assert not [line for line in done.stderr.splitlines() if line.split("|")[-1].strip() in ("torch", "transformers")]


def test_the_examples_compose(tmp_path):
    done = run("--config", "examples/demo.toml", "--model", "random:tiny", "--dump-config")
    assert (done.returncode, done.stderr) == (0, "")
    equal = run(
        "--plugins", "openai_http", "--model", "random:tiny", "--max-model-len", "2048", "--max-num-seqs", "32", "--dump-config"
    )
    assert equal.stdout == done.stdout


@pytest.mark.parametrize("command", [["--version"], ["--explain", "--model", "random:tiny"]])
def test_a_standard_output_that_takes_nothing(command):
    arguments = ["-m", "core.serve", *command]
    environment = {**os.environ, "DOVETAIL_DEVICE_PROBE": CPU.to_json()}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [PYTHON, *arguments], cwd=ROOT, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (
        1,
        "dovetail: error: standard output cannot be written to: no space left on device\n",
    )
    shell = ["sh", "-c", 'exec "$@" >&-', "sh", PYTHON, *arguments]
    done = subprocess.run(shell, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "dovetail: error: standard output cannot be written to: it is closed\n")


def test_a_model_that_may_not_be_read(monkeypatch, capsys):
    def denied(argv, program):
        raise PermissionError(13, "Permission denied", "/models/secret/config.json")

    monkeypatch.setattr(core.serve, "_main", denied)
    assert core.serve.main([]) == 2
    assert capsys.readouterr().err == (
        "dovetail: error: /models/secret/config.json may not be read or written by this user\n"
        "  remedy: give the user who runs this the permission (chmod, chown), or run it as one who has it\n"
    )


def test_ctrl_c_while_composing_is_no_traceback(monkeypatch):
    def interrupted(argv, program):
        raise KeyboardInterrupt

    monkeypatch.setattr(core.serve, "_main", interrupted)
    assert core.serve.main([]) == 130


def test_secrets_are_never_shown(tmp_path):
    flags = ("--model", "random:tiny", "--api-key", "alice=sk-secret")
    explained, dumped = run(*flags, "--explain").stdout, run(*flags, "--dump-config").stdout
    assert "sk-secret" not in explained + dumped
    assert re.search(r"^  api_key +\*+ +--api-key$", explained, re.MULTILINE)
    assert "\n# api_key is secret and not written here\n" in dumped
    (tmp_path / "again.toml").write_text(dumped)
    assert run("--config", str(tmp_path / "again.toml"), "--explain").returncode == 0
