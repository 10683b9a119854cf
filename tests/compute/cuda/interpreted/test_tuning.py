"""The `tune` command from its flags to a file, with Triton's interpreter for a device and a clock that is made up."""

import io
import math
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace

import numpy as np
import pytest
from triton.runtime.errors import OutOfResources

from core.bench import command, tune
from core.compose.build import load_decoder
from core.compute.torch_backend.backend import TorchBackend
from core.compute.torch_backend.triton import candidates, tables
from core.compute.torch_backend.triton.backend import TritonBackend
from core.compute.torch_backend.triton.tiling import Division, Table, Way, Ways, division, fitted, tiling
from core.compute.torch_backend.triton.tuning import (
    ALLOWED,
    FINALISTS,
    fastest,
    inserted,
    merged,
    otherwise_overlapped,
    without_tail,
)
from core.errors import UserError
from core.interfaces.model import LINEAR_ROLES
from core.plugin_manager import PluginManager
from core.testing.inputs import PagedSequences

WIDE = Ways(64, ((16, Way("read", 64, 128, 4, 2)),))  # few programs: the interpreter takes its time for each
TABLE = Table(
    {format: dict.fromkeys(LINEAR_ROLES, WIDE) for format in tables.FORMATS}, ((1, Division(64, 4, 64)),), "the test's table"
)
ARGV = ["--model", "random:tiny", "--device", "cpu", "--dtype", "float32", "--context", "20"]
PLACED = {}


def loader(made):
    def load(plan):
        PLACED["plan"] = plan
        return load_decoder(plan, made, PluginManager.load_only(plan.plugins))

    return load


def always_faster():
    """The later a candidate is timed the faster it seems: the last one wins. Nothing is run."""
    timed = []

    def clock(work):
        timed.append(work)
        return 1e-3 / len(timed)

    return timed, clock


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The file, what was said on the way, and what was timed."""
    path, said = tmp_path_factory.mktemp("tuned") / "deep" / "found.toml", io.StringIO()
    timed, clock = always_faster()
    argv = [*ARGV, "--rows", "5", "--operations", "down", "--output", str(path)]
    made = TritonBackend("cpu", "float32", threads=1, table=TABLE)
    with redirect_stderr(said), redirect_stdout(said):
        assert tune.main(argv, load=loader(made), clock=clock) == 0
    return path, said.getvalue(), timed


def test_every_candidate_was_checked_and_timed_and_the_fastest_is_in_the_file(found):
    path, said, timed = found
    heading, table = tables.read(path)
    assert (heading.device, heading.capability, heading.model[:11]) == ("Triton's interpreter", "0.0", "random:tiny")
    tried = candidates.ways(TABLE, "down", 5, 128, "16", 4)
    assert len(tried) == 13
    last = 1 + FINALISTS + 1  # what is in force, and the library, which is not among the quickest
    assert len(timed) == 13 + last
    assert tiling(table, "down", 5, 128, "16", 4) == fitted(tried[-1], 128, "down", 5, 128, 4)
    # What was not tried is as it was: what holds for 5 tokens says nothing of more, nor of half as many.
    for tokens in (1, 2, 6, 16, 17):
        assert tiling(table, "down", tokens, 128, "16", 4) == tiling(TABLE, "down", tokens, 128, "16", 4)
    assert {role: ways for role, ways in table.ways["16"].items() if role != "down"} == dict.fromkeys(
        ("qkv", "o", "gate_up", "head"), WIDE
    )
    assert table.ways["4"] == TABLE.ways["4"]
    assert table.attention == TABLE.attention
    best = "read (outputs 64 take 256 warps 4 stages 3 rows 16)"
    assert said == (
        f"[1/1] down, 64 x 128, float32, 5 rows: {1000 / 14:.2f} -> {1000 / len(timed):.2f} us, {best}; 13 tried\n"
        f"written to {path}: --torch-tiling {path}\n"
    )


def test_what_decides_is_a_few_layers_one_after_the_other(found, monkeypatch):
    _, _, timed = found
    called = []
    for name in ("qkv", "attention", "gate_up", "linear_add"):
        monkeypatch.setattr(TritonBackend, name, lambda *_, name=name: called.append(name))
    timed[0]()
    assert called == ["linear_add"], "at first, alone"
    called.clear()
    timed[-1]()
    layer = ["qkv", "attention", "linear_add", "gate_up", "linear_add"]
    assert called == layer * PLACED["plan"].facts["model.layers"]


def test_the_head_is_timed_behind_a_layer_with_the_likeliest_tokens(monkeypatch, tmp_path):
    monkeypatch.setattr(candidates, "ways", lambda table, *_: [WIDE.rows[0][1]])
    made, called = TritonBackend("cpu", "float32", threads=1, table=TABLE), []
    timed, clock = always_faster()
    argv = [*ARGV, "--rows", "1", "--operations", "head", "--output", str(tmp_path / "found.toml")]
    assert tune.main(argv, load=loader(made), clock=clock) == 0
    timed[-1]()
    for name in ("qkv", "attention", "gate_up", "linear_add", "logits", "argmax"):
        monkeypatch.setattr(TritonBackend, name, lambda *_, name=name: called.append(name))
    timed[-1]()
    assert called == ["qkv", "attention", "linear_add", "gate_up", "linear_add", "logits", "argmax"]


def test_a_step_that_is_divided_as_was_found_gives_the_logits_of_plain_torch(found):
    _, table = tables.read(found[0])
    logits = []
    for backend in (TorchBackend("cpu", "float32", 1), TritonBackend("cpu", "float32", threads=1, table=table)):
        decoder = loader(backend)(PLACED["plan"])
        kv, paged = backend.kv_cache(decoder.spec, 16, 8), PagedSequences(16, 8)
        for work in ({0: [5, 6], 1: [7]}, {0: [8], 1: [9], 2: [10]}, {1: [11]}):
            step = backend.upload(paged.step(work), decoder.spec, kv)
            logits.append(backend.to_host(decoder.forward(step, kv)))
    for plain, ours in zip(logits[:3], logits[3:], strict=True):
        assert np.abs(ours - plain).max() <= ALLOWED[4] * np.abs(plain).max()
        assert np.array_equal(ours.argmax(-1), plain.argmax(-1))


def test_what_cannot_be_tuned_is_refused(capsys):
    made = TritonBackend("cpu", "float32", threads=1, table=TABLE)
    assert tune.main([*ARGV, "--rows", "1", "--operations", "mlp"], load=loader(made), clock=lambda work: 1.0) == 2
    assert (
        "there is no operation mlp to tune\n  remedy: name some of qkv, o, gate_up, down, head, attention"
        in capsys.readouterr().err
    )
    assert command.main(["tune", *ARGV, "--torch-kernels", "reference"]) == 2
    said = "TorchBackend on cpu has nothing to tune: its operations are divided in one way\n"
    said += "  remedy: tune where kernels can be divided in several: choose another --device or --backend\n"
    assert said in capsys.readouterr().err
    with pytest.raises(UserError, match="deterministic steps divide their kernels in one way"):
        TritonBackend("cpu", "float32", threads=1, deterministic=True).tune(None, None, None, None, None)


def test_candidates_that_do_not_fit_are_counted_and_those_that_compute_wrongly_never_win():
    present, large, wrong, nan, equal = (Way("sums", outputs) for outputs in (1, 2, 4, 8, 16))
    off = {present: 1e-3, wrong: 0.5, nan: math.nan, equal: 0.0}

    def error(way):
        if way is large:
            raise OutOfResources(200_000, 101_376, "shared memory")
        return off[way]

    ways = [present, large, wrong, nan, equal]
    best = fastest(ways, error, 3e-2, {present: 1.0, equal: 0.5}.__getitem__, {present: 1.0, equal: 0.99}.__getitem__)
    assert best.candidate is present, "less than two percent is noise"
    assert best.skipped == ("sums (outputs 2 take 32 warps 4): OutOfResources",)
    assert best.wrong[0] == "sums (outputs 4 take 32 warps 4): off by 0.5 of the largest value, where 0.03 is allowed"
    assert len(best.wrong) == 2
    best = fastest(ways, error, 3e-2, {present: 1.0, equal: 2.0}.__getitem__, {present: 1.0, equal: 0.9}.__getitem__)
    assert (best.candidate, best.seconds, best.before) == (equal, 0.9, 1.0)
    best = fastest([wrong, nan], error, 3e-2, {}.__getitem__, {}.__getitem__)
    assert (best.candidate, best.seconds) == (wrong, math.inf)  # what is in force stays, and is told to be wrong
    with pytest.raises(RuntimeError, match="an illegal memory access"):
        fastest([present], error, 3e-2, lambda way: torch_fails(), {}.__getitem__)


def torch_fails():
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_of_those_that_are_quickest_alone_a_few_are_timed_amid_layers_and_the_first_of_each_way():
    ways = [Way("sums"), *(Way("read", 16, take) for take in (32, 64, 128, 256, 512, 1024)), Way("held"), Way("library")]
    alone, amid, checked = dict(zip(ways, range(9), strict=True)), [], []

    def error(way):
        checked.append(way)
        return math.nan if way == Way("read", 16, 64, overlap=True) else 0.0

    def amid_layers(way):
        amid.append(way)
        return 0.5 if way == Way("read", 16, 32, overlap=True) else 1.0

    best = fastest(ways, error, 1e-4, alone.__getitem__, amid_layers, otherwise_overlapped)
    early = [replace(way, overlap=True) for way in ways[1:5]]
    assert amid == [*ways[:5], *ways[7:], early[0], *early[2:]]
    assert checked == [*ways, *early], "what was right once is not computed again"
    assert (best.candidate, best.tried, len(best.wrong)) == (early[0], 13, 1)


def test_what_is_found_for_some_tokens_leaves_what_is_in_force_for_others():
    read = Way("read", 64, 128)
    for role in LINEAR_ROLES:
        before = tables.shipped().ways["16"][role].rows
        rows = before
        for tokens in (8, 16, 32):
            rows = inserted(rows, tokens, replace(read, stages=tokens // 8), behind=candidates.LIBRARY)
        for tokens in (1, 2, 3, 4, 33, 64):
            assert way_for(rows, tokens) == way_for(before, tokens)
        assert [way_for(rows, tokens).stages for tokens in (5, 8, 9, 16, 17, 32)] == [1, 1, 2, 2, 4, 4]
    before = tables.shipped().attention
    divided = Division(32, 2, 64)
    rows = inserted(before, 8, divided, behind=before[-1][1])
    assert [way_for(rows, number) for number in (1, 4, 5, 8)] == [before[0][1], before[1][1], divided, divided]
    assert rows[-len(before) + 1 :] == before[1:]
    # 8 and 32 were tried: what was in force for 16 stays, be it the library.
    few = ((4, read),)
    assert inserted(inserted(few, 8, Way("held"), behind=candidates.LIBRARY), 32, Way("sums"), behind=candidates.LIBRARY) == (
        (4, read), (8, Way("held")), (16, candidates.LIBRARY), (32, Way("sums")),
    )  # fmt: skip


def way_for(rows, tokens):
    return next((way for most, way in rows if most >= tokens), candidates.LIBRARY)


def test_rows_that_are_alike_are_one_and_the_library_needs_no_row_at_the_end():
    read, library = Way("read", 64, 128), Way("library")
    assert merged([(1, read), (2, read), (4, library), (8, read)]) == ((2, read), (4, library), (8, read))
    assert without_tail(((2, read), (4, library))) == ((2, read),)
    assert without_tail(((4, library),)) == ((4, library),)


def test_packed_weights_are_tried_against_what_they_stand_for_and_wrong_numbers_are_told(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(candidates, "TAKEN_BY_LANES", ((256, 1), (512, 2)))

    class Broken(TritonBackend):
        def linear_add(self, x, weight, residual):
            way = self._tiles(weight, len(x))
            return super().linear_add(x, weight, residual).mul_(1.5 if way and way[1].outputs == 4 else 1.0)

    path = tmp_path / "found.toml"
    argv = [*ARGV, "--rows", "1", "--operations", "o,attention", "--output", str(path), "--quantization", "wint8"]
    made = Broken("cpu", "float32", threads=1, table=TABLE)
    timed, clock = always_faster()
    assert tune.main(argv, load=loader(made), clock=clock) == 1
    heading, table = tables.read(path)
    assert heading.model == "random:tiny --device cpu --dtype float32 --quantization wint8"
    divided = candidates.divisions(TABLE, 1)
    assert division(table, 1) == divided[-1]
    tried = [fitted(way, 128, "o", 1, 128, 4) for way in candidates.ways(TABLE, "o", 1, 128, "8", 4)]
    wrong = [way for way in tried if way is not None and way.outputs == 4]
    others = {way.way for way in candidates.ways(TABLE, "o", 1, 128, "8", 4)}
    assert len(timed) == len(tried) - len(wrong) + len(divided) + len(others) + FINALISTS - 1 + 1 + FINALISTS
    assert tiling(table, "o", 1, 128, "8", 4) == [way for way in tried if way not in wrong][-1]
    assert table.ways["16"] == TABLE.ways["16"]
    said = capsys.readouterr().err
    assert f"{len(wrong)} WRONG\n" in said
    assert (
        f"dovetail: error: {len(wrong)} candidates computed wrong numbers; none of them was taken:\n    o, 64 x 128, " in said
    )
    assert "  remedy: report this: a kernel or its compiler is wrong on this device\n" in said
