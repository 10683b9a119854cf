"""The hardware table: which machine runs what, beside what FastDeploy's page says, and whether its bytes are true."""

import dataclasses
import json

import pytest

from core.compose import compose
from core.compose.build import build_engine
from core.compose.first_pass import first_pass
from core.compose.hardware import known_hardware
from core.plan import command
from core.plan.table import cell, departures, table
from core.plugin_manager import PluginManager
from tests.compose.fakes import CPU

PAGE_FLAGS = ["--max-model-len", "32768", "--max-num-seqs", "128"]


@pytest.fixture(scope="module")
def manager():
    return PluginManager.discover()


def first(*argv, model="random:ernie-4.5-0.3b"):
    return first_pass(argv, env={}, overrides={"model": model})


@pytest.fixture(scope="module")
def rows(manager):
    quantizations = ["none", *sorted(each.name for each in manager.offers("quantizer"))]
    return table(first(*PAGE_FLAGS), manager, known_hardware(), quantizations, (1, 2, 4, 8))


def test_the_table_is_that_of_the_page(rows):
    page = {(row.hardware.name, name): asked for row in rows for name, asked in row.hardware.page.items()}
    assert len(page) == 18
    ours = {
        (row.hardware.name, name): found.gpus or 0
        for row in rows
        for name, found in row.cells.items()
        if name in row.hardware.page
    }
    assert ours == {key: asked for key, asked in page.items() if key in ours}
    assert {name for _, name in ours} >= {"wint8", "wint4"}


def test_what_the_page_contradicts_itself_in_is_said(rows):
    notes = departures(rows)
    assert [note.partition(":")[0] for note in notes] == ["L20 48G", "A30 24G"]


def test_a_difference_to_the_page_is_said(rows):
    altered = [
        dataclasses.replace(row, hardware=dataclasses.replace(row.hardware, note="", page={"wint4": 2, "wint8": 0}))
        for row in rows[:1]
    ]
    assert departures(altered) == [
        "H800 80G, wint4: the page says 2 GPUs, here it is 1 GPU",
        "H800 80G, wint8: the page says none can, here it is 1 GPU",
    ]


def card_of(memory_bytes):
    card = known_hardware()[0]
    gpu = dataclasses.replace(card.probe.devices[0], memory_bytes=memory_bytes, free_bytes=memory_bytes)
    return dataclasses.replace(card, probe=dataclasses.replace(card.probe, devices=(gpu,)))


def test_more_cards_where_one_has_too_little_memory(manager):
    flags = ["--max-model-len", "2048", "--max-num-seqs", "4"]
    alone, shared = (cell(first(*flags), manager, card_of(size), "none", (1, 2, 4)) for size in (2 << 30, 800 << 20))
    assert (alone.gpus, shared.gpus) == (1, 2)
    assert shared.need.weights == pytest.approx(alone.need.weights / 2, rel=0.01)
    assert shared.need.kv_of_a_request == alone.need.kv_of_a_request / 2


def test_a_card_too_small_says_what_is_missing(manager):
    found = cell(first(), manager, card_of(1 << 29), "none", (1,))
    assert found.gpus is None
    assert [problem.what for problem in found.problems] == [
        "the weights of random:ernie-4.5-0.3b take 0.67 GiB in bfloat16, and 0.45 GiB of cuda memory may be used"
    ]


def test_pages_and_requests_follow_from_the_memory(rows):
    for row in rows:
        need = row.cells["none"].need
        left = row.hardware.memory_bytes * 0.9 - need.weights - need.activations
        assert need.requests == pytest.approx(left / need.kv_of_a_request, abs=1)
        assert need.kv_of_a_request == 32768 * 18432  # what performance arithmetic gives for this model


def test_as_json(capsys):
    assert command.main(["--json", "--hardware", "L20 48G", "--quantization", "none", *PAGE_FLAGS]) == 0
    shown = json.loads(capsys.readouterr().out)
    (row,) = shown["hardware"]
    assert (row["name"], row["capability"]) == ("L20 48G", 8.9)
    assert row["quantizations"]["none"]["gpus"] == 1
    assert row["quantizations"]["none"]["bytes"]["weights"] == pytest.approx(721e6, rel=0.01)


def test_as_text(capsys):
    assert command.main(["--hardware", "l20 48g", "--quantization", "none", *PAGE_FLAGS]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["weights", "0.67", "GiB"] in [line.split() for line in lines]
    assert any(line.startswith("L20 48G") and "8.9" in line and "1 (69)" in line for line in lines)


def test_the_model_that_stands_in_is_named(capsys):
    asked = ["--hardware", "l20 48g", "--quantization", "none"]
    assert command.main(asked) == 0
    assert capsys.readouterr().out.startswith("random:ernie-4.5-0.3b, as no --model is named\n")
    assert command.main([*asked, "--model", "random:tiny"]) == 0
    assert "as no --model" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--hardware", "A10 24GB"], "no hardware is known as 'A10 24GB'; did you mean 'A10 24G'?"),
        (["--gpus", "two"], "'two' is no list of numbers of GPUs"),
    ],
)
def test_what_is_wrong_is_said(argv, said, capsys):
    assert command.main(argv) == 2
    assert said in capsys.readouterr().err.splitlines()[0]


@pytest.mark.parametrize(
    ("argv", "what", "where"),
    [
        (
            ["--model", "random:tiny", "--quantization", "wint4"],
            "groups of 128 weights do not divide the hidden width 64",
            "--quantization, default of quant_wint4.pad, default of quant_wint4.group_size, --model",
        ),
        (
            ["--quantization", "wint3"],
            "no installed plugin offers the quantizer 'wint3'; did you mean 'wint8'?",
            "--quantization",
        ),
        (["--port", "99999"], "openai_http.port = '99999': input should be less than or equal to 65535", "--port"),
        (["--model", "nope"], "there is no model 'nope': it is no folder, and names on a hub read OWNER/NAME", "--model"),
    ],
)
def test_what_nothing_runs_is_refused_as_a_launch_of_it_is(argv, what, where, capsys):
    assert command.main([*argv, "--hardware", "l20 48g", "--hardware", "a10 24g"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[:2] == [f"dovetail: error: {what}", f"  set by: {where}"]
    assert command.main([*argv, "--hardware", "l20 48g", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["hardware"][0]["quantizations"]


def test_machines_that_lack_different_things_are_a_table_without_needs(capsys):
    asked = ["--hardware", "a10 24g", "--hardware", "a30 24g", "--quantization", "block_wise_fp8"]
    assert command.main(asked) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "none of these machines runs it"
    assert "weights" not in "".join(lines[:6])
    assert "[1] fp8 needs compute capability 8.9, and A10 24G has 8.6" in lines


def test_the_page_is_of_one_model(capsys):
    asked = ["--hardware", "a30 24g", "--quantization", "none"]
    assert command.main([*asked, *PAGE_FLAGS]) == 0
    assert "* A30 24G: the page calls it A30 40G; an A30 has 24 GB" in capsys.readouterr().out
    assert command.main([*asked, "--model", "random:tiny"]) == 0
    assert "FastDeploy" not in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("quantization", ["none", "wint8", "wint4"])
def test_what_is_foretold_is_what_the_engine_takes(quantization, dtype):
    """Weights and KV pages of an engine on this CPU, within a tenth."""
    overrides = {
        "model": "random:smollm2-135m",
        "dtype": dtype,
        "quantization": quantization,
        "threads": 1,
        "max_model_len": 256,
        "max_num_seqs": 4,
        "num_gpu_blocks_override": 64,
    }
    plan = compose(
        ["--quant-wint4-group-size", "64"] if quantization == "wint4" else [], env={}, overrides=overrides, probe=CPU
    )
    engine = build_engine(plan)
    try:
        runner = engine._runner
        decoder = runner._decoder
        norms = [decoder.final_norm, *(norm for layer in decoder.layers for norm in (layer.input_norm, layer.post_norm))]
        held = {id(each): each.nbytes for each in (*decoder.linears, decoder.embedding)}  # a tied head may be the embedding
        taken = sum(held.values())
        taken += sum(norm.weight.nbytes for norm in norms)
        assert runner._kv.nbytes == plan.facts["memory.kv_bytes"]
        assert plan.facts["memory.weights_bytes"] == pytest.approx(taken, rel=0.1)
    finally:
        engine.close()
