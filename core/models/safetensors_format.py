"""Folders as model hubs publish them: config.json beside one .safetensors file, or shards and their index. Never a pickle."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import UserError
from core.interfaces.model import Checkpoint, CheckpointFormat, HubFiles, Tensor

if TYPE_CHECKING:
    from core.models.safetensors_file import SafetensorsFile

INDEX = "*.safetensors.index.json"
SINGLE = "model.safetensors"


class Safetensors(CheckpointFormat):
    hub_files = HubFiles(weights=("*.safetensors",))

    def recognizes(self, path: Path) -> bool:
        return path.is_dir() and (next(path.glob("*.safetensors"), None) or next(path.glob(INDEX), None)) is not None

    def config(self, path: Path) -> Mapping[str, Any]:
        """config.json, with generation_config.json's content under "generation_config" where there is one."""
        if not (path / "config.json").is_file():
            raise UserError.of(
                f"{path} has no config.json", "", "give a folder as transformers saves it, or as a model hub publishes it"
            )
        config = read_json(path / "config.json")
        if (path / "generation_config.json").is_file():
            config["generation_config"] = read_json(path / "generation_config.json")
        return config

    def open(self, path: Path) -> Checkpoint:
        return SafetensorsCheckpoint(path, self.config(path))


class SafetensorsCheckpoint(Checkpoint):
    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        from core.models.safetensors_file import SafetensorsFile

        self.config = config
        self._files: list[SafetensorsFile] = []
        self._places: dict[str, SafetensorsFile] = {}
        for path, wanted in weight_files(folder).items():
            file = SafetensorsFile(path)
            self._files.append(file)
            for name in file.spans if wanted is None else wanted:
                if name not in file.spans:
                    raise UserError.of(
                        f"{path} lacks tensor {name!r}, which the index places there", "", "fetch the checkpoint again"
                    )
                if name in self._places:
                    raise UserError.of(
                        f"tensor {name!r} is in both {self._places[name].path.name} and {path.name} of {folder}",
                        "",
                        "keep the files of one checkpoint in a folder",
                    )
                self._places[name] = file

    def names(self) -> frozenset[str]:
        return frozenset(self._places)

    def tensor(self, name: str) -> Tensor:
        return self._places[name].tensor(name)

    def release(self, name: str) -> None:
        self._places[name].release(name)

    def close(self) -> None:
        for file in self._files:
            file.close()


def weight_files(folder: Path) -> dict[Path, list[str] | None]:
    """The files to read and the tensors to take from each (None: all). First an index, then model.safetensors, then any."""
    indexes = sorted(folder.glob(INDEX))
    if len(indexes) > 1:
        raise UserError.of(
            f"{folder} has {len(indexes)} indexes: {', '.join(path.name for path in indexes)}",
            "",
            "keep the files of one checkpoint in a folder",
        )
    if indexes:
        return indexed_files(indexes[0])
    if (folder / SINGLE).is_file():
        return {folder / SINGLE: None}
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError.of(f"{folder} has no .safetensors file", "", "fetch the checkpoint again")
    return dict.fromkeys(files)


def indexed_files(index: Path) -> dict[Path, list[str] | None]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise UserError.of(f"{index} has no weight_map from tensor names to files", "", "fetch the checkpoint again")
    wanted: dict[Path, list[str]] = defaultdict(list)
    for name, file in weight_map.items():
        if Path(file).name != file:
            raise UserError.of(f"{index} places tensor {name!r} outside its folder: {file!r}", "", "do not use this checkpoint")
        wanted[index.parent / file].append(name)
    missing = sorted(path.name for path in wanted if not path.is_file())
    if missing:
        raise UserError.of(
            f"{index.parent} lacks {len(missing)} of {len(wanted)} shards: {', '.join(missing)}",
            "",
            "fetch the checkpoint again",
        )
    return {**wanted}


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # JSON, but for its depth or a number of too many digits, among them
        raise UserError.of(f"{path} is not JSON: {str(error).lower()}", "", "fetch the checkpoint again") from None
    if not isinstance(content, dict):
        raise UserError.of(f"{path} must hold a table", "", "fetch the checkpoint again")
    return content
