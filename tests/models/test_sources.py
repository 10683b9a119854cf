"""Where a model comes from: local first, hubs through their clients, and every way it can go wrong."""

import errno
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from core.errors import UserError
from core.interfaces.model import HubFiles, ModelFolder
from core.models import hubs, sources
from tests.models import checkpoints as made
from tests.models.hub_server import Hub

SETTINGS = {"model_source": "huggingface", "model_cache": None, "revision": None}


def resolve(model, **changes):
    return sources.resolve(str(model), SETTINGS | changes, made.formats())


def refused(model, **changes):
    with pytest.raises(UserError) as error:
        resolve(model, **changes)
    return str(error.value)


@pytest.fixture(scope="module")
def pt(tmp_path_factory):
    return made.save_pt(made.ernie_model(), tmp_path_factory.mktemp("models") / "pt")


# --- local --------------------------------------------------------------------------------------------------------------


def test_a_folder_and_a_file_are_themselves(pt, tmp_path):
    assert resolve(pt) == ModelFolder(str(pt), pt, "safetensors")
    file = made.save_gguf(made.llama_model(), tmp_path / "m.gguf")
    assert resolve(file) == ModelFolder(str(file), file, "gguf")
    assert sources.fetch(resolve(pt), SETTINGS) == resolve(pt)


def test_a_local_folder_wins_over_a_hub_and_over_the_demo(pt, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "baidu").mkdir()
    (tmp_path / "baidu" / "ERNIE").symlink_to(pt)
    found = resolve("baidu/ERNIE")
    assert found == ModelFolder("baidu/ERNIE", tmp_path / "baidu" / "ERNIE", "safetensors")
    assert sources.fetch(found, SETTINGS) == found
    (tmp_path / "demo").symlink_to(pt)
    assert resolve("demo") == ModelFolder("demo", tmp_path / "demo", "safetensors")


def test_the_demo_samples_nothing_unless_asked_to(tmp_path, monkeypatch):
    monkeypatch.setattr(sources.demo, "demo_file", lambda cache: tmp_path / "demo.gguf")
    assert resolve("demo") == ModelFolder("demo", tmp_path / "demo.gguf", "gguf", {"temperature": 0.0})


def test_random_has_no_path():
    assert resolve("random:tiny") == ModelFolder("random:tiny", None, "random")
    assert sources.fetch(resolve("random:tiny"), SETTINGS).path is None


def test_pickles_are_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    assert refused(tmp_path) == (
        f"the weights in {tmp_path} are pickles (pytorch_model.bin): loading one can run any code, so none is ever read\n"
        "  set by: model\n"
        "  remedy: convert them where you trust them: transformers' from_pretrained, then save_pretrained, writes safetensors\n"
        "  remedy: choose a checkpoint published as safetensors or GGUF"
    )


@pytest.mark.parametrize("name", ["model_state.pdparams", "consolidated.00.pth", "model.pt"])
def test_every_kind_of_pickle_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    assert refused(tmp_path).startswith(f"the weights in {tmp_path} are pickles ({name})")


def test_folders_and_files_nothing_reads(tmp_path):
    assert refused(tmp_path).splitlines()[0] == f"no checkpoint format reads the folder {tmp_path}: it has no files"
    (tmp_path / "notes.md").write_text("")
    assert refused(tmp_path).splitlines()[0] == f"no checkpoint format reads the folder {tmp_path}: it has notes.md"
    assert refused(tmp_path / "notes.md").splitlines()[0] == (
        f"{tmp_path / 'notes.md'} is a file that no checkpoint format reads (gguf, random, safetensors)"
    )


def test_a_folder_two_formats_read_is_refused(pt, tmp_path):
    made.save_pt(made.ernie_model(), tmp_path)
    made.save_gguf(made.llama_model(), tmp_path / "m.gguf")
    assert refused(tmp_path) == (
        f"{tmp_path} can be read as gguf and as safetensors\n  set by: model\n"
        "  remedy: name the file itself for a GGUF, or keep the files of one checkpoint in a folder"
    )


def test_names_that_are_nothing():
    assert refused("/no/such/folder") == "there is no folder or file /no/such/folder\n  set by: model\n  remedy: check the path"
    assert refused("~nobody-here/m").splitlines()[0] == "there is no folder or file ~nobody-here/m"
    assert refused("m" * 5000).startswith("there is no model 'mmm")
    assert refused("models/m.gguf").splitlines()[0] == "there is no folder or file models/m.gguf"
    assert refused("demmo") == (
        "there is no model 'demmo': it is no folder, and names on a hub read OWNER/NAME; did you mean 'demo'?\n"
        "  set by: model\n  remedy: --model demo, a local folder, OWNER/NAME on a hub, or random:SHAPE"
    )


def test_a_format_that_was_left_out(pt):
    with pytest.raises(UserError) as error:
        sources.resolve("random:tiny", SETTINGS, {})
    assert str(error.value) == (
        "this model needs the checkpoint format 'random', which no composed plugin offers\n"
        "  set by: model\n  remedy: add the plugin that offers it: --plugins decoder_models"
    )


# --- Hugging Face, by its own client against a server of ours --------------------------------------------------------------

RUN = """
import json, sys
from core.errors import UserError
from core.interfaces.model import CheckpointFormat, HubFiles
from core.models import plugin, sources


class Mine(CheckpointFormat):
    hub_files = HubFiles(weights=("*.mine",), light=("*.idx",))
    recognizes = staticmethod(lambda path: (path / "mine.idx").is_file())
    config = open = None


model, settings, steps = json.loads(sys.argv[1])
formats = {offer.name: offer.create() for offer in plugin.register_checkpoint_formats()} | {"mine": Mine()}
try:
    folder = sources.resolve(model, settings, formats)
    if "fetch" in steps:
        folder = sources.fetch(folder, settings)
    print(json.dumps({"path": str(folder.path), "format": folder.format}))
except UserError as error:
    print(json.dumps({"error": str(error)}))
"""


def in_process(url, cache, model, steps=("resolve", "fetch"), **changes):
    """HF_ENDPOINT is read when the client is imported, so each case has a process of its own."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": url, "HF_HOME": str(cache / "home"), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"}
    asked = json.dumps([model, SETTINGS | {"model_cache": str(cache)} | changes, steps])
    ran = subprocess.run([sys.executable, "-c", RUN, asked], capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def files(pt):
    return {path.name: path.read_bytes() for path in pt.iterdir()} | {
        "README.md": b"read me",
        "tokenizer.model": b"pieces",
        "pytorch_model.bin": b"a pickle",
        "onnx/config.json": b"{}",
    }


def test_resolve_is_light_and_fetch_brings_the_rest(files, pt, tmp_path):
    with Hub({"baidu/ERNIE": files}) as hub:
        light = in_process(hub.url, tmp_path, "baidu/ERNIE", ["resolve"])
        assert light["format"] == "safetensors"
        assert sorted(path.name for path in Path(light["path"]).iterdir()) == [
            "config.json",
            "generation_config.json",
            "tokenizer.model",
        ]
        whole = in_process(hub.url, tmp_path, "baidu/ERNIE")
        assert sorted(set(hub.fetched())) == ["config.json", "generation_config.json", "model.safetensors", "tokenizer.model"]
        assert len(hub.fetched()) == 4
        assert Path(whole["path"]).is_relative_to(tmp_path)
        again = in_process(hub.url, tmp_path, "baidu/ERNIE")
        assert len(hub.fetched()) == 4
    offline = in_process(hub.url, tmp_path, "baidu/ERNIE")
    assert whole == again == offline
    found, expected = made.canonical(whole["path"]), made.canonical(pt)
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)


def test_a_plugins_format_says_what_is_fetched_of_it(files, tmp_path):
    mine = {"mine.idx": b"where", "a.mine": b"weights", "model.safetensors": b"another's", "config.json": b"{}"}
    with Hub({"some/mine": mine, "some/half": {"mine.idx": b"where"}}) as hub:
        light = in_process(hub.url, tmp_path, "some/mine", ["resolve"])
        assert (light["format"], sorted(hub.fetched())) == ("mine", ["config.json", "mine.idx"])
        whole = in_process(hub.url, tmp_path, "some/mine")
        assert sorted(hub.fetched()) == ["a.mine", "config.json", "mine.idx"]
        half = in_process(hub.url, tmp_path, "some/half")
    assert whole == light
    assert (Path(whole["path"]) / "a.mine").read_bytes() == b"weights"
    assert half["error"].startswith("some/half on Hugging Face has no .mine file; ")


def test_a_download_that_broke_off_goes_on(files, tmp_path):
    chunk = 10 << 20  # what the client writes at a time
    large = bytes(range(256)) * (3 * chunk // 256)
    with Hub({"baidu/ERNIE": files | {"model.safetensors": large}}, cut=["model.safetensors"]) as hub:
        whole = in_process(hub.url, tmp_path, "baidu/ERNIE")
        ranges = [asked for _, path, asked in hub.requests if path.endswith("model.safetensors") and asked]
    assert (Path(whole["path"]) / "model.safetensors").read_bytes() == large
    assert ranges == [f"bytes={chunk}-"]


def test_one_gguf_file_of_a_repository(tmp_path):
    file = made.save_gguf(made.llama_model(), tmp_path / "small.gguf").read_bytes()
    with Hub({"some/llama-gguf": {"small.gguf": file, "large.gguf": b"x"}}) as hub:
        found = in_process(hub.url, tmp_path / "cache", "some/llama-gguf/small.gguf")
        assert hub.fetched() == ["small.gguf"]
        missing = in_process(hub.url, tmp_path / "cache", "some/llama-gguf/other.gguf")
        no_config = in_process(hub.url, tmp_path / "cache", "some/llama-gguf")
    assert found["format"] == "gguf"
    assert Path(found["path"]).read_bytes() == file
    assert missing["error"].splitlines()[0] == "some/llama-gguf on Hugging Face has no file other.gguf"
    assert no_config["error"] == (
        "some/llama-gguf on Hugging Face has no config.json\n  set by: model\n"
        "  remedy: if it holds GGUF files, name one: --model some/llama-gguf/FILE.gguf\n"
        "  remedy: choose a repository of safetensors files"
    )


def test_what_hugging_face_refuses(files, tmp_path):
    with Hub({"meta/gated": files, "baidu/ERNIE": files}, gated=["meta/gated"]) as hub:
        assert in_process(hub.url, tmp_path, "baidu/none")["error"] == (
            "Hugging Face has no model baidu/none, or it is private\n  set by: model\n  remedy: check the name\n"
            "  remedy: for a private model: hf auth login, or HF_TOKEN\n"
            "  remedy: for another hub: --model-source modelscope or aistudio"
        )
        assert in_process(hub.url, tmp_path, "meta/gated")["error"] == (
            "meta/gated on Hugging Face is gated: its owner lets only those who accepted its terms fetch it\n  set by: model\n"
            "  remedy: accept the terms on the model's page, then run hf auth login or set HF_TOKEN"
        )
        assert in_process(hub.url, tmp_path, "baidu/ERNIE", revision="v9")["error"] == (
            "baidu/ERNIE on Hugging Face has no revision 'v9'\n  set by: revision\n  remedy: drop --revision, or name another"
        )


def test_unreachable(tmp_path):
    with Hub({}) as hub:
        url = hub.url
    assert in_process(url, tmp_path, "baidu/ERNIE")["error"] == (
        "Hugging Face cannot be reached, and baidu/ERNIE is not in the cache whole\n  set by: model\n"
        "  remedy: check the network, or a proxy's HTTPS_PROXY\n"
        "  remedy: give a local folder as --model, or --model demo"
    )


def test_a_repository_of_pickles(files, tmp_path):
    pickled = {name: data for name, data in files.items() if not name.endswith(".safetensors")}
    with Hub({"some/old": pickled}) as hub:
        error = in_process(hub.url, tmp_path, "some/old")["error"]
        assert "pytorch_model.bin" not in hub.fetched()
    assert error.splitlines()[0] == (
        "some/old on Hugging Face has no .safetensors file; weights that are pickles are never read"
    )


def test_a_full_disk(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    assert refused("baidu/ERNIE") == (
        "no space is left on the disk while fetching baidu/ERNIE\n  set by: model_cache\n"
        "  remedy: free some disk, or --model-cache FOLDER on another one; what is there already will not be fetched again"
    )


# --- ModelScope and AI Studio, by a stand-in for their clients ------------------------------------------------------------


@pytest.fixture
def client(monkeypatch, pt):
    """Stand-ins whose snapshot_download records its arguments and answers with a folder, or raises."""
    calls = []

    def snapshot_download(*args, **kwargs):
        calls.append((args, kwargs))
        if isinstance(client.answer, Exception):
            raise client.answer
        return str(client.answer)

    client = types.SimpleNamespace(calls=calls, answer=pt)
    modelscope, sdk = types.ModuleType("modelscope"), types.ModuleType("aistudio_sdk")
    inner = types.ModuleType("aistudio_sdk.snapshot_download")
    modelscope.snapshot_download = inner.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "modelscope", modelscope)
    monkeypatch.setitem(sys.modules, "aistudio_sdk", sdk)
    monkeypatch.setitem(sys.modules, "aistudio_sdk.snapshot_download", inner)
    return client


def test_modelscope(client, pt, tmp_path):
    settings = SETTINGS | {"model_source": "modelscope", "model_cache": str(tmp_path)}
    found = sources.resolve("baidu/ERNIE-4.5-0.3B-PT", settings, made.formats())
    assert sources.fetch(found, settings) == ModelFolder("baidu/ERNIE-4.5-0.3B-PT", pt, "safetensors")
    assert found.hub_files == HubFiles(weights=("*.safetensors",))
    assert client.calls[0] == (
        ("PaddlePaddle/ERNIE-4.5-0.3B-PT",),
        {
            "revision": "master",
            "allow_patterns": sources.LIGHT,
            "ignore_patterns": ["*/*"],
            "cache_dir": str(tmp_path / "modelscope"),
        },
    )
    assert client.calls[1][1]["allow_patterns"] == [*sources.LIGHT, "*.safetensors"]


def test_aistudio(client, pt, tmp_path):
    settings = SETTINGS | {"model_source": "aistudio", "model_cache": str(tmp_path), "revision": "v2"}
    found = sources.resolve("baidu/ERNIE-4.5-0.3B-Paddle", settings, made.formats())
    assert sources.fetch(found, settings).path == pt
    assert client.calls[0][1] == {
        "repo_id": "PaddlePaddle/ERNIE-4.5-0.3B-Paddle",
        "revision": "v2",
        "allow_patterns": sources.LIGHT,
        "ignore_patterns": ["*/*"],
        "local_dir": str(tmp_path / "aistudio" / "PaddlePaddle/ERNIE-4.5-0.3B-Paddle"),
    }
    resolve("other/model", model_source="aistudio")
    assert client.calls[-1][1]["repo_id"] == "other/model"
    assert client.calls[-1][1]["revision"] == "master"
    assert "local_dir" not in client.calls[-1][1]


@pytest.mark.parametrize(
    ("source", "title", "module"), [("modelscope", "ModelScope", "modelscope"), ("aistudio", "AI Studio", "aistudio_sdk")]
)
def test_a_client_that_is_not_installed(monkeypatch, source, title, module):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    message = refused("baidu/ERNIE", model_source=source).splitlines()
    assert message[0].startswith(f"fetching from {title} needs its client library, which cannot be imported: ")
    assert message[1:] == [
        "  set by: model_source",
        f"  remedy: pip install 'dovetail-serve[{source}]'",
        "  remedy: --model-source huggingface",
    ]


def test_what_a_client_raises_is_told_in_one_line(client):
    client.answer = RuntimeError("The request failed: 404\nmany lines")
    assert refused("baidu/ERNIE", model_source="modelscope") == (
        "could not fetch baidu/ERNIE from ModelScope: The request failed: 404\n  set by: model\n"
        "  remedy: check the name and the network, then try again: what is there already will not be fetched again\n"
        "  remedy: give a local folder as --model"
    )


def test_every_source_of_the_settings_has_a_hub():
    from typing import get_args

    from core.compose.settings import CoreSettings

    assert set(get_args(CoreSettings.model_fields["model_source"].annotation)) == set(hubs.HUBS) == set(hubs.TITLES)
