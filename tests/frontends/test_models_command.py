"""models and tokenizer: over random models, folders and a hub's cache that are made here."""

import hashlib
import io
import json

import pytest

from core.errors import ExitCode
from core.interfaces.model import ModelFolder
from core.models import demo
from core.models.random_format import SHAPES, RandomCheckpoint
from core.models.safetensors_writer import Shards
from core.saving import save_packed
from core.text.saving import text_files
from frontends.cli.main import main

COMMIT = "c" * 40
NAME = "somebody/tiny"


@pytest.fixture
def folder(tmp_path):
    """A model in two shards with their index."""
    made = tmp_path / "model"
    made.mkdir()
    checkpoint = RandomCheckpoint(SHAPES["tiny"], 0)
    shards = Shards(made, 100_000)
    for name in sorted(checkpoint.names()):
        shards.add(name, checkpoint.tensor(name))
    shards.finish()
    shards.close()
    for name, content in text_files(ModelFolder("random:tiny", None, "random")).items():
        (made / name).write_bytes(content)
    (made / "config.json").write_text(json.dumps(SHAPES["tiny"]))
    return made


@pytest.fixture
def cache(tmp_path, folder):
    """The same model as Hugging Face's client keeps it."""
    repo = tmp_path / "cache" / "models--somebody--tiny"
    snapshot = repo / "snapshots" / COMMIT
    for part in (snapshot, repo / "blobs", repo / "refs"):
        part.mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    for path in folder.iterdir():
        content = path.read_bytes()
        large = path.suffix == ".safetensors"
        digest = hashlib.sha256(content) if large else hashlib.sha1(b"blob %d\0" % len(content) + content)
        (repo / "blobs" / digest.hexdigest()).write_bytes(content)
        (snapshot / path.name).symlink_to(repo / "blobs" / digest.hexdigest())
    return repo.parent


def findings(capsys, *arguments):
    code = main(["models", *arguments, "--json"])
    return code, {each["about"]: each for each in json.loads(capsys.readouterr().out)}


def test_a_whole_model_is_verified(folder, cache, capsys):
    code, found = findings(capsys, "verify", str(folder))
    assert code == ExitCode.OK
    assert {each["state"] for each in found.values()} == {"ok"}
    assert found["config"]["what"] == "Ernie4_5ForCausalLM, 2 layers of 64, 0.1 M parameters"
    assert found["weights"]["what"] == "all 15 are here, in the shapes the config asks for"
    assert found["index"]["what"].endswith(" shards hold what it says")
    assert found["hashes"]["what"] == "none are known for these files"
    code, found = findings(capsys, "verify", NAME, "--model-cache", str(cache))
    assert code == ExitCode.OK
    assert found["hashes"]["what"] == f"{len(list(folder.iterdir()))} of its files have known ones, and these are right"


def test_damage_is_found(folder, cache, capsys):
    shard = sorted((cache / "models--somebody--tiny" / "snapshots" / COMMIT).glob("*.safetensors"))[0]
    with shard.open("r+b") as file:
        file.seek(-1, io.SEEK_END)
        file.write(b"\x7f")
    code, found = findings(capsys, "verify", NAME, "--model-cache", str(cache))
    assert code == ExitCode.FAILED
    assert found["hashes"]["what"] == f"{shard.name} is damaged: its hash is not the one it was published with"
    assert found["weights"]["state"] == "ok"
    assert findings(capsys, "verify", NAME, "--quick", "--model-cache", str(cache))[0] == ExitCode.OK

    sorted(folder.glob("*.safetensors"))[-1].unlink()
    code, found = findings(capsys, "verify", str(folder))
    assert code == ExitCode.FAILED
    assert "shards: " in found["weights"]["what"]


def test_shapes_and_texts_that_do_not_fit_are_found(folder, capsys):
    (folder / "config.json").write_text(json.dumps(SHAPES["tiny"] | {"intermediate_size": 256}))
    (folder / "chat_template.jinja").write_text("{% if %}")
    code, found = findings(capsys, "verify", str(folder))
    assert code == ExitCode.FAILED
    assert "has the shape" in found["weights"]["what"]
    assert "the chat template does not parse" in found["text"]["what"]
    (folder / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"]}))
    code, found = findings(capsys, "verify", str(folder))
    assert found["config"]["what"].startswith("no installed plugin knows the architecture GPT2LMHeadModel")


def test_a_packed_model_is_verified(tmp_path, capsys):
    save_packed(["--model", "random:tiny", "--quantization", "wint8"], tmp_path / "packed", 1 << 30)
    code, found = findings(capsys, "verify", str(tmp_path / "packed"))
    assert (code, found["config"]["what"]) == (
        ExitCode.OK,
        "Ernie4_5ForCausalLM, 2 layers of 64, 0.1 M parameters, packed by wint8",
    )


def test_what_is_not_here_is_refused_and_not_fetched(tmp_path, capsys):
    for model in ("demo", NAME):
        assert main(["models", "verify", model, "--model-cache", str(tmp_path)]) == ExitCode.REFUSED
        assert capsys.readouterr().err.startswith(f"dovetail: error: {model} is not here\n  set by: --model\n")
    (tmp_path / "demo").mkdir()
    file = demo.place(tmp_path)
    file.write_bytes(b"a part")
    assert main(["models", "verify", "demo", "--model-cache", str(tmp_path)]) == ExitCode.REFUSED
    assert f"{file} is not whole" in capsys.readouterr().err
    assert main(["models", "verify"]) == ExitCode.REFUSED
    assert "no model is named" in capsys.readouterr().err


def test_pull_fetches_and_verifies(capsys, monkeypatch, folder):
    from core.models import hubs

    asked = []

    def fetch(repo, revision, cache, patterns):
        asked.append((repo, revision, patterns))
        return folder

    monkeypatch.setitem(hubs.HUBS, "huggingface", fetch)
    code, found = findings(capsys, "pull", NAME, "--revision", "v1")
    assert (code, found["weights"]["state"]) == (ExitCode.OK, "ok")
    assert {(repo, revision) for repo, revision, _ in asked} == {(NAME, "v1")}
    assert any("*.safetensors" in patterns for _, _, patterns in asked)
    assert main(["models", "pull", "random:tinny"]) == ExitCode.REFUSED
    assert capsys.readouterr().err.startswith(
        "dovetail: error: there is no random shape 'tinny'; did you mean 'tiny'?\n  set by: --model\n"
    )


def test_list(folder, cache, capsys):
    assert main(["models", "list", str(folder.parent), "--model-cache", str(cache), "--json"]) == ExitCode.OK
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert found["demo"]["state"] == "not here: 93 MB through pip"
    assert (found[NAME]["kind"], found[NAME]["state"]) == ("huggingface", "here")
    assert found[str(folder)]["nbytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert found["random:tiny"]["nbytes"] == 0
    assert main(["models", "list", "--model-cache", str(cache)]) == ExitCode.OK
    assert "\033" not in (text := capsys.readouterr().out)
    assert NAME in text


# --- tokenizer ----------------------------------------------------------------------------------------------------------


def tokens(capsys, *arguments):
    code = main(["tokenizer", *arguments, "--model", "random:tiny"])
    shown = capsys.readouterr()
    return shown.out if code == ExitCode.OK else shown.err


def test_text_to_ids_and_back(capsys, monkeypatch, tmp_path):
    assert tokens(capsys, "encode", "Hi", "there") == "75 108 35 119 107 104 117 104\n"
    assert tokens(capsys, "decode", "75", "108,") == "Hi\n"
    assert tokens(capsys, "encode", "Hi", "--json") == "[75, 108]\n"
    assert json.loads(tokens(capsys, "count", "Hi", "--json")) == {"tokens": 2, "characters": 2, "bytes": 2}
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n"))
    assert tokens(capsys, "count") == "2\n"
    file = tmp_path / "ids.json"
    file.write_text("[75, 108]\n")
    assert tokens(capsys, "decode", "--file", str(file)) == "Hi\n"
    assert "is no id of this tokenizer" in tokens(capsys, "decode", "9" * 5000)
    assert tokens(capsys, "decode", "512") == (
        "dovetail: error: '512' is no id of this tokenizer\n  remedy: ids are whole numbers below 512\n"
    )
    assert "a text and a file are given" in tokens(capsys, "count", "x", "--file", str(file))


def test_pieces_are_shown(capsys, monkeypatch):
    assert tokens(capsys, "show", "aé") == "100  'a'\n198  '\\xc3'\n172  '\\xa9'\n3 tokens\n"
    [first, *_] = json.loads(tokens(capsys, "show", "aé", "--json"))
    assert first == {"id": 100, "text": "a", "bytes": [97], "special": False}
    monkeypatch.setattr("frontends.cli.screen.coloured", lambda stream: True)
    assert tokens(capsys, "show", "ab").startswith("\033[30;46ma\033[0m\033[30;44mb\033[0m\n")


def test_a_chat_is_rendered(capsys):
    messages = [{"role": "user", "content": "Hi"}]
    text = "<|begin_of_sentence|>User: Hi\nAssistant: "
    assert tokens(capsys, "chat", json.dumps(messages)) == f"{text}\n"
    request = {"messages": messages, "model": "x"}
    assert tokens(capsys, "chat", json.dumps(request), "--no-generation-prompt") == text.removesuffix("Assistant: ") + "\n"
    whole = json.loads(tokens(capsys, "chat", json.dumps(messages), "--json"))
    assert whole["prompt"] == text
    assert tokens(capsys, "decode", *map(str, whole["prompt_token_ids"])) == f"{text}\n"
    assert "the messages are not JSON" in tokens(capsys, "chat", "hello")
    assert "there is no list of messages" in tokens(capsys, "chat", "{}")
    for kwargs in (5, {"messages": []}):
        told = tokens(capsys, "chat", json.dumps({"messages": messages, "chat_template_kwargs": kwargs}))
        assert "chat_template_kwargs must be an object of the template's own variables" in told
    assert "the messages are not JSON" in tokens(capsys, "chat", "[" * 100_000)
    assert "messages[0] needs a role" in tokens(capsys, "chat", "[{}]")
