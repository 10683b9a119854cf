"""The folder that is written: whole or not at all, over nothing, and by a command that says what it did."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

import core.saving
from core.errors import ExitCode, UserError
from core.models.safetensors_writer import Shards
from core.saving import save_packed
from frontends.cli.main import main

WINT8 = ["--model", "random:tiny", "--quantization", "wint8"]
GIB = 1 << 30


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refused(folder, argv=WINT8):
    with pytest.raises(UserError) as error:
        save_packed(argv, folder, GIB)
    return str(error.value)


def test_a_folder_that_does_not_exist_is_made_and_an_empty_one_is_filled(tmp_path):
    for folder in (tmp_path / "new" / "deep", tmp_path):
        if folder.exists():
            (tmp_path / "new" / "deep").rename(tmp_path.parent / f"{tmp_path.name}-moved")
            (tmp_path / "new").rmdir()
        saved = save_packed(WINT8, folder, GIB)
        assert files(folder) == [
            "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer_config.json",
        ]  # fmt: skip
        assert saved.folder == folder
        assert saved.nbytes == (folder / "model.safetensors").stat().st_size - 8 - core.models.safetensors_writer.ROOM


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "letter").write_text("dear")
    before = files(tmp_path)
    remedy = "\n  set by: --output\n  remedy: name a folder that does not exist yet"
    assert refused(tmp_path) == f"{tmp_path} is not empty, and nothing is overwritten{remedy}"
    assert refused(tmp_path / "letter") == f"{tmp_path / 'letter'} is no folder, and nothing is overwritten{remedy}"
    assert files(tmp_path) == before


class Broken(Exception):
    pass


@pytest.mark.parametrize("failure", [Broken(), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_what_fails_leaves_nothing_behind(tmp_path, monkeypatch, failure):
    real, added, seen = Shards.add, [], []

    def add(self, name, tensor):
        added.append(name)
        if len(added) == 9:
            seen.extend(files(tmp_path))
            raise failure
        real(self, name, tensor)

    monkeypatch.setattr(Shards, "add", add)
    folder = tmp_path / "packed"
    if isinstance(failure, OSError):
        with pytest.raises(UserError) as error:
            save_packed(WINT8, folder, 10_000)
        assert str(error.value) == f"{folder} cannot be written: no space left on device\n  set by: --output"
        assert error.value.exit_code == ExitCode.FAILED
    else:
        with pytest.raises(type(failure)):
            save_packed(WINT8, folder, 10_000)
    assert any(name.endswith(".partial") for name in seen)
    assert not any(Path(name).name == "config.json" for name in seen)  # what a killed process leaves is no checkpoint
    assert files(tmp_path) == []


def test_a_folder_that_was_filled_meanwhile_is_not_overwritten(tmp_path, monkeypatch):
    folder = tmp_path / "packed"
    real = Shards.finish

    def finish(self):
        real(self)
        folder.mkdir()
        (folder / "letter").write_text("dear")

    monkeypatch.setattr(Shards, "finish", finish)
    assert refused(folder) == f"{folder} cannot be written: directory not empty\n  set by: --output"
    assert files(tmp_path) == ["packed", "packed/letter"]


def test_what_is_not_packed_has_the_format_asked_for(tmp_path):
    save_packed([*WINT8, "--dtype", "float32", "--no-quant-wint8-head"], tmp_path / "wide", GIB)
    save_packed([*WINT8, "--no-quant-wint8-head"], tmp_path / "plain", GIB)
    sizes = {name: (tmp_path / name / "model.safetensors").stat().st_size for name in ("wide", "plain")}
    assert sizes["wide"] - sizes["plain"] == 2 * 512 * 64
    configs = {name: json.loads((tmp_path / name / "config.json").read_text()) for name in sizes}
    assert (configs["wide"]["dtype"], configs["plain"]["dtype"]) == ("float32", "bfloat16")
    assert configs["plain"]["quantization_config"] == {
        "quant_method": "dovetail",
        "version": 1,
        "quantizer": "wint8",
        "plugin": "quant_wint8",
        "settings": {"head": False},
        "layouts": {"qkv": "int8_row", "o": "int8_row", "gate_up": "int8_row", "down": "int8_row"},
    }


def test_the_command_says_what_it_did(tmp_path, capsys):
    argv = ["quantize", "random:tiny", "--quantization", "wint4", "--quant-wint4-group-size", "32", "--shard-size", "0.0001"]
    assert main([*argv, "--output", str(tmp_path / "packed")]) == ExitCode.OK
    assert capsys.readouterr().out == (
        f"{tmp_path / 'packed'}: 0.2 MB, packed as wint4 "
        "(qkv int4_group, o int4_group, gate_up int4_group, down int4_group, head int8_row)\n"
    )
    assert len(list((tmp_path / "packed").glob("*.safetensors"))) == 2
    assert main([*argv, "--output", str(tmp_path / "packed")]) == ExitCode.REFUSED
    assert capsys.readouterr().err == (
        f"dovetail: error: {tmp_path / 'packed'} is not empty, and nothing is overwritten\n"
        "  set by: --output\n  remedy: name a folder that does not exist yet\n"
    )


def test_the_command_refuses_what_it_cannot_do(tmp_path, capsys):
    output = ["--output", str(tmp_path / "packed")]
    assert main(["quantize", "random:tiny", *output, "--quantization", "wint5"]) == ExitCode.REFUSED
    assert "no installed plugin offers the quantizer 'wint5'; did you mean" in capsys.readouterr().err
    assert main(["quantize", "random:tiny", *output, "--quantization", "wint4"]) == ExitCode.REFUSED
    assert "groups of 128 weights do not divide the hidden width 64" in capsys.readouterr().err
    assert main(["quantize", *WINT8, *output, "--shard-size", "0"]) == ExitCode.REFUSED
    assert capsys.readouterr().err == (
        "dovetail: error: a file holds more than 0 GiB\n"
        "  set by: --shard-size\n  remedy: leave it out, or give a number of GiB\n"
    )
    assert files(tmp_path) == []


def test_packing_needs_no_compute_framework(tmp_path):
    code = (
        "import sys\nfrom frontends.cli.main import main\n"
        f"code = main(['quantize', 'random:tiny', '--quantization', 'wint8', '--output', {str(tmp_path / 'packed')!r}])\n"
        "print(code, 'torch' in sys.modules)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "0 False"
