"""Where a model comes from: ``random:``, a local folder or file, ``demo``, and the chosen hub, in this order."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.interfaces.model import CheckpointFormat, ModelFolder
from core.models import demo, hubs
from core.suggest import did_you_mean

RANDOM = "random:"
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
HUB_FILE = re.compile(rf"({HUB_NAME.pattern})/([^/]+\.gguf)")
LIGHT = ["*.json", "*.model", "*.jinja", "*.txt"]  # config, tokenizer, chat template, shard index: of any format
COMMON = "safetensors"  # what a repository is whose light files show no format
PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pdparams"})


def resolve(model: str, settings: Mapping[str, Any], formats: Mapping[str, CheckpointFormat]) -> ModelFolder:
    """Find a model and its format. From a hub only its small files are fetched, or the one GGUF file that was named.

    :param formats: the chosen checkpoint formats by name.
    :raises UserError: when there is no such model, or no format reads it.
    """
    if model.startswith(RANDOM):
        needed(formats, "random").config(Path(model))
        return ModelFolder(model, None, "random")
    path = Path(os.path.expanduser(model))
    if exists(path) and (model != demo.NAME or recognized(path, formats)):
        return local(model, path.absolute(), formats)
    if model == demo.NAME:
        needed(formats, "gguf")
        return ModelFolder(model, demo.demo_file(cache_folder(settings)), "gguf", demo.DEFAULTS)
    if (named := HUB_FILE.fullmatch(model)) is not None:
        needed(formats, "gguf")
        repo, name = named.groups()
        return ModelFolder(model, whole_file(repo, name, settings), "gguf")
    if HUB_NAME.fullmatch(model) is None or model.endswith(".gguf"):
        raise not_found(model)
    on_hubs = {name: found.hub_files for name, found in formats.items() if found.hub_files is not None}
    light = [pattern for files in on_hubs.values() for pattern in files.light]
    folder = download(model, settings, [*LIGHT, *light])
    others = [name for name in recognized(folder, formats) if name in on_hubs and name != COMMON]
    if len(others) > 1:
        raise UserError.of(
            f"{model} on {hub_title(settings)} can be read as {' and as '.join(others)}",
            "model",
            "leave out the plugin that offers one of them: --without PLUGIN",
        )
    if others:
        return ModelFolder(model, folder, others[0], hub_files=on_hubs[others[0]])
    needed(formats, COMMON)
    if not (folder / "config.json").is_file():
        raise UserError.of(
            f"{model} on {hub_title(settings)} has no config.json",
            "model",
            f"if it holds GGUF files, name one: --model {model}/FILE.gguf",
            "choose a repository of safetensors files",
        )
    return ModelFolder(model, folder, COMMON, hub_files=on_hubs.get(COMMON))


def text_files(folder: ModelFolder, settings: Mapping[str, Any]) -> ModelFolder:
    """Where tokenizer and chat template lie: with the model, unless ``tokenizer`` names another place.

    :raises UserError: when there is no such place.
    """
    name = settings.get("tokenizer")
    if name in (None, folder.name):
        return folder
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        return ModelFolder(name, path.absolute(), "tokenizer")
    if HUB_NAME.fullmatch(name) is None:
        raise UserError.of(
            f"there is no folder {name} for the tokenizer",
            "tokenizer",
            "give a folder that has tokenizer.json or tokenizer.model, or OWNER/NAME on a hub",
        )
    return ModelFolder(name, download(name, settings, LIGHT), "tokenizer")


def is_here(model: str) -> bool:
    """Whether ``resolve`` needs nothing from elsewhere for it."""
    return model.startswith(RANDOM) or exists(Path(os.path.expanduser(model)))


def kept(model: str, settings: Mapping[str, Any]) -> Path | None:
    """Where the files of a model lie that was fetched before, in part or whole; or None. Nothing is fetched for the answer."""
    path = Path(os.path.expanduser(model))
    if exists(path):
        return path.absolute()
    cache = cache_folder(settings)
    if model == demo.NAME:
        file = demo.place(cache)
        return file if file.is_file() else None
    named = HUB_FILE.fullmatch(model)
    repo = named[1] if named is not None else model
    if HUB_NAME.fullmatch(repo) is None:
        return None
    folder = hubs.kept(settings.get("model_source") or "huggingface", repo, settings.get("revision"), cache)
    if folder is None or named is None:
        return folder
    return folder / named[2] if (folder / named[2]).is_file() else None


def fetch(folder: ModelFolder, settings: Mapping[str, Any]) -> ModelFolder:
    """The same model with everything on disk. Local folders, files and models without files are so already."""
    files = folder.hub_files
    if files is None:
        return folder
    path = download(folder.name, settings, [*LIGHT, *files.light, *files.weights])
    if not any(True for pattern in files.weights for _ in path.glob(pattern)):
        kinds = " or ".join(pattern.lstrip("*") for pattern in files.weights)
        raise UserError.of(
            f"{folder.name} on {hub_title(settings)} has no {kinds} file; weights that are pickles are never read",
            "model",
            "choose a repository of safetensors files; for ERNIE-4.5-0.3B: baidu/ERNIE-4.5-0.3B-PT",
        )
    return dataclasses.replace(folder, path=path, hub_files=None)


def local(model: str, path: Path, formats: Mapping[str, CheckpointFormat]) -> ModelFolder:
    names = recognized(path, formats)
    if len(names) == 1:
        return ModelFolder(model, path, names[0])
    if names:
        raise UserError.of(
            f"{model} can be read as {' and as '.join(names)}",
            "model",
            "name the file itself for a GGUF, or keep the files of one checkpoint in a folder",
        )
    if path.is_file():
        raise UserError.of(
            f"{model} is a file that no checkpoint format reads ({', '.join(sorted(formats))})",
            "model",
            "give the folder that holds config.json and the weights, or a .gguf file",
        )
    files = sorted(entry.name for entry in path.iterdir())
    pickles = [name for name in files if Path(name).suffix in PICKLES]
    if pickles:
        raise UserError.of(
            f"the weights in {model} are pickles ({', '.join(pickles[:3])}{', ...' if len(pickles) > 3 else ''}): "
            "loading one can run any code, so none is ever read",
            "model",
            "convert them where you trust them: transformers' from_pretrained, then save_pretrained, writes safetensors",
            "choose a checkpoint published as safetensors or GGUF",
        )
    raise UserError.of(
        f"no checkpoint format reads the folder {model}: it has "
        + (f"{', '.join(files[:5])}{', ...' if len(files) > 5 else ''}" if files else "no files"),
        "model",
        "give a folder with config.json and .safetensors files, or one .gguf file",
    )


def recognized(path: Path, formats: Mapping[str, CheckpointFormat]) -> list[str]:
    return [name for name in sorted(formats) if formats[name].recognizes(path)]


def exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:
        raise
    except OSError:  # a name too long for any file
        return False


def needed(formats: Mapping[str, CheckpointFormat], name: str) -> CheckpointFormat:
    if name not in formats:
        raise UserError.of(
            f"this model needs the checkpoint format {name!r}, which no composed plugin offers",
            "model",
            "add the plugin that offers it: --plugins decoder_models",
        )
    return formats[name]


def not_found(model: str) -> UserError:
    if model.startswith((".", "/", "~")) or "/" in model or model.endswith(".gguf"):
        return UserError.of(f"there is no folder or file {model}", "model", "check the path")
    return UserError.of(
        f"there is no model {model!r}: it is no folder, and names on a hub read OWNER/NAME{did_you_mean(model, [demo.NAME])}",
        "model",
        "--model demo, a local folder, OWNER/NAME on a hub, or random:SHAPE",
    )


def whole_file(repo: str, name: str, settings: Mapping[str, Any]) -> Path:
    path = download(repo, settings, [name]) / name
    if not path.is_file():
        raise UserError.of(f"{repo} on {hub_title(settings)} has no file {name}", "model", "check the name")
    return path


def download(repo: str, settings: Mapping[str, Any], patterns: list[str]) -> Path:
    return hubs.download(
        settings.get("model_source") or "huggingface", repo, settings.get("revision"), cache_folder(settings), patterns
    )


def hub_title(settings: Mapping[str, Any]) -> str:
    return hubs.TITLES[settings.get("model_source") or "huggingface"]


def cache_folder(settings: Mapping[str, Any]) -> Path | None:
    """Where the user wants fetched models; None for each source's own default."""
    return Path(os.path.expanduser(settings["model_cache"])).absolute() if settings.get("model_cache") else None
