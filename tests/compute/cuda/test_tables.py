"""Which table divides kernels on a device: a named file, one found here, one that is shipped; and what is said of others."""

import logging

import pytest

from core.compose.composition import attempt
from core.compose.first_pass import first_pass
from core.compose.probe import DeviceProbe, Gpu
from core.compute.torch_backend.kernels import table_for
from core.compute.torch_backend.triton import tables
from core.compute.torch_backend.triton.tables import Device, Found
from core.errors import UserError
from core.plugin_manager import PluginManager

H200 = Device("NVIDIA H200", "9.0", "3.6")
L4 = Device("NVIDIA L4", "8.9", "3.6")
GIB = 1 << 30


def write(path, device=L4, **changed):
    heading = {"device": device.name, "capability": device.capability, "triton": device.triton} | changed
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tables.written(Found(**heading), tables.shipped()))
    return path


def chosen(device, cache, caplog, named=None):
    with caplog.at_level(logging.INFO, "dovetail.compute"):
        table = table_for(device, named, cache)
    return table, [record.getMessage() for record in caplog.records]


def test_without_a_file_it_is_what_is_shipped_and_the_log_says_what_for(tmp_path, caplog):
    table, said = chosen(H200, tmp_path, caplog)
    assert said == ["native kernels are divided by the table for capability 9.0 that is shipped"]
    caplog.clear()
    other, said = chosen(L4, tmp_path, caplog)
    assert (other.ways, other.attention) == (table.ways, table.attention)
    assert said == [
        "native kernels are divided by the table that is shipped for capability 9.0, as there is none for 8.9; "
        "`python -m core.bench tune` makes one"
    ]


def test_what_was_found_on_such_a_device_comes_before_what_is_shipped_and_a_named_file_before_that(tmp_path, caplog):
    own = write(tables.own_file(L4, tmp_path))
    assert own == tmp_path / "tiling" / "nvidia-l4_8.9_triton-3.6.toml"
    _, said = chosen(L4, tmp_path, caplog)
    assert said == [f"native kernels are divided by {own}"]
    caplog.clear()
    named = write(tmp_path / "mine.toml", H200)
    _, said = chosen(L4, tmp_path, caplog, named)
    assert said == [f"native kernels are divided by {named}"]


def test_a_file_of_another_device_or_triton_is_passed_over_and_that_is_said(tmp_path, caplog):
    own = write(tables.own_file(L4, tmp_path), H200)
    table, said = chosen(L4, tmp_path, caplog)
    assert table == tables.shipped("8.9")
    assert said[0] == (
        f"{own} was found on NVIDIA H200, capability 9.0, Triton 3.6, and this is NVIDIA L4, capability 8.9, Triton 3.6: "
        "it is not taken; `python -m core.bench tune` makes one for this"
    )
    assert len(said) == 2
    caplog.clear()
    older = write(tables.own_file(Device(H200.name, H200.capability, "3.5"), tmp_path))
    table, said = chosen(H200, tmp_path, caplog)
    assert table == tables.shipped("9.0")
    assert said[0] == (
        f"{older.parent} has {older.name}, found with another Triton than 3.6: `python -m core.bench tune` makes one for this"
    )


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("[found]", "[founnd]", "[found] has to say its device and capability"),
        ('capability = "8.9"', 'capability = "new"', "[found] has the capability 'new', which is none as devices have: 9.0"),
        ('triton = "3.6"', "triton = 3.6", "[found] has triton, which is none of capability, device, model, torch, triton, "
         "when as text"),
        ('["16".o]', '["16".oh]', '[16] has to have each of qkv, o, gate_up, down, head, and nothing else'),
        ("columns = 2048", "columns = 0", "[16.o] has to say columns, a whole number of at least 1"),
        ("take = 256", "take = 250", "[16.qkv], take: value error, is no power of two"),
        ('way = "held"', 'way = "hold"', "[16.qkv], way: input should be 'sums', 'held', 'read' or 'library'"),
        ("warps = 1 }", "warps = 1, warp = 2 }", "[16.qkv], warp: extra inputs are not permitted"),
        ("[attention]", "[attentive]", "[attention] has to have rows, each under the number of tokens up to which it holds"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_refused_with_what_is_wrong(tmp_path, before, after, said):
    own = write(tables.own_file(L4, tmp_path))
    text = own.read_text()
    assert before in text
    own.write_text(text.replace(before, after, 1))
    with pytest.raises(UserError) as refused:
        tables.in_force(L4, None, tmp_path)
    (problem,) = refused.value.problems
    assert problem.what == f"the table of tilings {own} cannot be used: {said}"
    assert problem.remedies[0] == f"make it anew: python -m core.bench tune --output {own}"


def composed(*flags, gpu=True):
    card = Gpu("NVIDIA L4", 8.9, 24 * GIB, 24 * GIB)
    probe = DeviceProbe("a CPU", 8, (), 64 * GIB, 64 * GIB, (card,) if gpu else ())
    device = ["--device", "cuda" if gpu else "cpu"]
    return attempt(first_pass(["--model", "random:tiny", *device, *flags], {}, None), PluginManager.discover(), probe)


def test_a_named_file_is_judged_with_the_plan(tmp_path):
    fits = write(tmp_path / "fits.toml")
    assert composed("--torch-tiling", str(fits)).plan.sections["backend_torch"]["tiling"] == str(fits)
    for argv, gpu, rule in (
        ([], False, "tiling-on-cpu"),
        (["--torch-kernels", "reference"], True, "tiling-of-plain-torch"),
        (["--deterministic"], True, "tiling-of-deterministic-steps"),
    ):
        tried = composed("--torch-tiling", str(fits), *argv, gpu=gpu)
        assert [violation.rule.id for violation in tried.violations] == [rule]
    tried = composed("--torch-tiling", str(write(tmp_path / "other.toml", H200)))
    assert [violation.rule.id for violation in tried.violations] == ["tiling-of-another-capability"]
    said = f"the file {tmp_path / 'other.toml'} was found for compute capability 9, and NVIDIA L4 has 8.9"
    assert tried.problems[0].what == said
    older = composed("--torch-tiling", str(write(tmp_path / "older.toml", triton="3.1")))
    assert older.plan is not None
    assert "was found on NVIDIA L4 with Triton 3.1: another may be faster here" in str(older.plan.warnings)
    (tmp_path / "none.toml").write_text("take = 3\n")
    (problem,) = composed("--torch-tiling", str(tmp_path / "none.toml")).problems
    said = f"{tmp_path / 'none.toml'} is no table as `python -m core.bench tune` writes it: [found] has to say its device and"
    assert said in problem.what
    assert problem.where == "--torch-tiling"
    gone = composed("--torch-tiling", str(tmp_path / "gone.toml"))
    assert "gone.toml cannot be read: No such file or directory" in str(gone.problems[0])
