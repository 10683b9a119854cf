"""Compiling the native kernels: the cache, its key, and what is said when it cannot be done."""

import ctypes
import os
import stat
import subprocess
import sys

import pytest

from core.compute.torch_backend.native import build


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Sources of one line, so that compiling takes no time."""
    sources = tmp_path / "src"
    sources.mkdir()
    (sources / "one.cpp").write_text('extern "C" __attribute__((visibility("default"))) long one() { return 1; }')
    (sources / "two.cpp").write_text('extern "C" __attribute__((visibility("default"))) long two() { return 2; }')
    monkeypatch.setattr(build, "SOURCES", sources)
    return sources


def test_all_units_are_in_one_library_which_is_kept(small, tmp_path, monkeypatch):
    file = build.library(tmp_path / "cache")
    loaded = ctypes.CDLL(str(file))
    assert (loaded.one(), loaded.two()) == (1, 2)
    monkeypatch.setattr(build, "compile_into", None)
    assert build.library(tmp_path / "cache") == file
    assert [each.suffix for each in file.parent.iterdir() if each != file] == [".lock"]


def test_other_sources_flags_or_cpus_make_another_library(small, monkeypatch):
    compiler = build.find_compiler()
    keys = {build.key(compiler, build.FLAGS), build.key(compiler, (*build.FLAGS, "-O0"))}
    monkeypatch.setattr(build, "cpu_features", lambda: b"flags: fewer")
    keys.add(build.key(compiler, build.FLAGS))
    (small / "two.cpp").write_text("")
    keys.add(build.key(compiler, build.FLAGS))
    assert len(keys) == 4


def test_first_starts_at_once_share_one_library(small, tmp_path):
    program = (
        "import sys, ctypes; from pathlib import Path; from core.compute.torch_backend.native import build\n"
        "build.SOURCES = Path(sys.argv[1]); print(ctypes.CDLL(str(build.library(Path(sys.argv[2])))).two())"
    )
    command = [sys.executable, "-c", program, str(small), str(tmp_path / "cache")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate(timeout=60)[0] for process in running] == ["2\n"] * 4
    assert len(list((tmp_path / "cache" / "native").glob("*.so"))) == 1


def test_no_compiler_is_told(small, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(build.NotBuiltError, match=r"^no C\+\+ compiler was found$"):
        build.library(tmp_path)
    monkeypatch.setenv("CXX", "gone++")
    with pytest.raises(build.NotBuiltError, match=r"^the compiler that \$CXX names was not found: gone\+\+$"):
        build.library(tmp_path)


def test_a_compiler_that_fails_is_told_and_leaves_nothing(small, tmp_path):
    (small / "two.cpp").write_text("long two() { return nothing; }")
    with pytest.raises(build.NotBuiltError, match=r"cannot compile the kernels: .*two\.cpp.*error.*nothing"):
        build.library(tmp_path / "cache")
    assert [file.name for file in (tmp_path / "cache" / "native").iterdir()] == ["build.lock"]


def test_a_cache_that_cannot_be_written_is_told(small, tmp_path):
    (tmp_path / "native").write_text("a file where the folder should be")
    with pytest.raises(build.NotBuiltError, match=r"^cannot keep compiled kernels in .*native: "):
        build.library(tmp_path)


def test_a_compiler_that_does_not_run_is_told(small, tmp_path, monkeypatch):
    fake = tmp_path / "fake++"
    fake.write_text("no program")
    os.chmod(fake, stat.S_IRWXU)
    monkeypatch.setenv("CXX", str(fake))
    with pytest.raises(build.NotBuiltError, match=r"fake\+\+ does not run"):
        build.library(tmp_path / "cache")
