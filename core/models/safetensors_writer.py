"""Writing .safetensors files, tensor by tensor, without knowing beforehand how many there will be."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from core.interfaces.model import Tensor
from core.models.safetensors_file import DTYPES
from core.models.safetensors_format import SINGLE

ROOM = 64 << 10  # bytes kept free for a file's header, which precedes what it describes; spaces fill it up
CODES = {dtype: code for code, dtype in DTYPES.items()}


class Shards:
    """One file after the other in a folder, each at most ``most`` bytes of tensors, or one tensor."""

    def __init__(self, folder: Path, most: int) -> None:
        self._folder, self._most = folder, most
        self._file: BinaryIO | None = None
        self._header: dict[str, Any] = {}
        self._room = ROOM
        self._end = 0
        self._shards: list[list[str]] = []  # the names of the tensors in each
        self.nbytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        data = np.ascontiguousarray(tensor)
        if self._file is not None and self._end + data.nbytes > self._most:
            self._finish_shard()
        needed = len(self._entry(name, data))
        if self._file is not None and needed > self._room:
            self._finish_shard()
        file = self._file or self._begin_shard()
        self._header |= json.loads(self._entry(name, data))
        self._room -= needed
        file.write(data.reshape(-1).view(np.uint8).data)
        self._end += data.nbytes
        self.nbytes += data.nbytes
        self._shards[-1].append(name)

    def _entry(self, name: str, data: Tensor) -> str:
        place = {"dtype": CODES[data.dtype], "shape": data.shape, "data_offsets": [self._end, self._end + data.nbytes]}
        return json.dumps({name: place}, separators=(",", ":"))

    def finish(self) -> None:
        """Give the files the names that readers expect, and an index if there are several."""
        self._finish_shard()
        count = len(self._shards)
        names = [SINGLE] if count == 1 else [f"model-{at + 1:05}-of-{count:05}.safetensors" for at in range(count)]
        for at, name in enumerate(names):
            self._path(at).rename(self._folder / name)
        if count > 1:
            weight_map = {tensor: name for name, shard in zip(names, self._shards, strict=True) for tensor in shard}
            index = {"metadata": {"total_size": self.nbytes}, "weight_map": weight_map}
            (self._folder / f"{SINGLE}.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")

    def close(self) -> None:
        """After a failure: nothing is finished."""
        if self._file is not None:
            self._file.close()

    def _path(self, number: int) -> Path:
        return self._folder / f"shard-{number}.partial"

    def _begin_shard(self) -> BinaryIO:
        self._file = self._path(len(self._shards)).open("wb")
        self._file.seek(8 + ROOM)
        self._header, self._room, self._end = {}, ROOM, 0
        self._shards.append([])
        return self._file

    def _finish_shard(self) -> None:
        if self._file is None:
            return
        header = json.dumps(self._header, separators=(",", ":")).encode()
        self._file.seek(0)
        self._file.write(ROOM.to_bytes(8, "little") + header.ljust(ROOM))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
