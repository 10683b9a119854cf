"""The two contestants for real, on a tiny model: they must compute the same, and the measuring must hang together."""

import json
from dataclasses import replace

import pytest

from core.bench.command import main
from core.bench.offline import run
from core.bench.report import OURS, Options

THEIRS = "transformers"

TINY = Options(
    dtype="float32",
    threads=1,
    batches=(1, 3),
    input_len=24,
    output_len=12,
    prefill=40,
    repeat=1,
    against=(THEIRS,),
    model="random:tiny",
)


@pytest.fixture(scope="module")
def report():
    return run(TINY)


def test_they_agree(report):
    assert report.agreement[THEIRS].same_tokens == 1.0
    assert report.agreement[THEIRS].same_first == (4, 4)
    assert report.agreement[THEIRS].most_apart < 1e-4


def test_neighbours_change_rounding_at_most(report):
    assert report.company < 1e-5


def test_what_computes_is_told(report):
    assert report.versions[OURS]["kernels"].startswith(("native kernels: ", "plain torch"))


def test_another_backend_is_a_peer_on_the_same_weights():
    """Here the very same one, though the composition names it differently."""
    options = replace(TINY, against=("backend:torch",), compose=("--backend", "torch"), batches=(2,), prefill=0)
    found = run(options)
    assert found.agreement["backend:torch"].same_tokens == 1.0
    assert found.versions["backend:torch"] == found.versions[OURS]


def test_everything_is_measured(report):
    assert [row.name for row in report.rows] == ["decode, batch 1", "decode, batch 3", "prefill of 40", "start", "peak memory"]
    for row in report.rows:
        assert all(value > 0 for name in (OURS, THEIRS) for value in row.measured[name].values)
    assert report.row("decode, batch 3").ratios[THEIRS] > 0
    assert report.machine["cores"] >= 1


def test_alone_through_the_command(tmp_path, capsys):
    file = tmp_path / "report.json"
    sizes = {"batch": 2, "input-len": 8, "output-len": 4, "prefill": 0, "repeat": 1, "threads": 1}
    arguments = ["--model=random:llama-tiny", *(f"--{name}={size}" for name, size in sizes.items())]
    assert main([*arguments, "--json", str(file)]) == 0
    content = json.loads(file.read_text())
    assert [row["name"] for row in content["rows"]] == ["decode, batch 2", "start", "peak memory"]
    assert content["agreement"] == {}
    assert "decode, batch 2, tok/s" in capsys.readouterr().out


def test_a_composition_that_is_refused_is_told(capsys):
    assert main(["--model", "random:nothing"]) == 2
    assert "there is no random shape 'nothing'" in capsys.readouterr().err
