"""A GGUF file, mapped: metadata, then where each tensor lies, then the tensors' blocks.

The header is walked here, since the ``gguf`` package takes seconds to index a tokenizer's strings; that package's
dequantization turns blocks into values, where ``gguf_blocks`` does not.
"""

from __future__ import annotations

import mmap
import struct
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from math import gcd, prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import UserError
from core.host import usable_cores
from core.interfaces.model import Tensor
from core.models import gguf_blocks

STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
LENGTH = struct.Struct("<Q")
ALIGNMENT = 32  # unless general.alignment says otherwise
MOST_DIMS = 4
PLAIN = {0: "f4", 1: "f2", 30: "bfloat16"}  # numbers of formats that are mapped, or nothing but widened
CHUNK = 1 << 17  # values unpacked at a time
MOST_WORKERS = 8  # that unpack at the same time
TOGETHER = 8  # rows given to the package as one


@dataclass(frozen=True, slots=True)
class Blocks:
    """A tensor in a file: its numeric format by number, its shape (row-major, unlike the file's own order), its offset."""

    kind: int
    shape: tuple[int, ...]
    offset: int


class HeaderWalk:
    def __init__(self, data: mmap.mmap, at: int = 0) -> None:
        self.data = data
        self.at = at

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def count(self) -> int:
        """A number of things that follow; each takes a byte at least, so a file cannot claim more than it is long."""
        number: int = self.scalar("Q")
        if number > len(self.data) - self.at:
            raise ValueError("it is truncated")
        return number

    def string(self) -> str:
        length = self.count()
        start, self.at = self.at, self.at + length
        return self.data[start : self.at].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind in SCALARS:
            return self.scalar(SCALARS[kind])
        if kind != ARRAY:
            raise ValueError(f"it has a value of the unknown kind {kind}")
        element, count = self.scalar("I"), self.count()
        if element == STRING:
            return [self.data[start:end].decode("utf-8", "replace") for start, end in self.strings(count)]
        if element not in SCALARS:
            return [self.value(element) for _ in range(count)]
        layout = f"<{count}{SCALARS[element]}"
        values = struct.unpack_from(layout, self.data, self.at)
        self.at += struct.calcsize(layout)
        return list(values)

    def strings(self, count: int) -> Iterator[tuple[int, int]]:
        """Where each of them begins and ends. Of a vocabulary there are a hundred thousand: what is done for each counts."""
        at, data, last, length = self.at, self.data, len(self.data), LENGTH.unpack_from
        for _ in range(count):
            start = at + LENGTH.size
            at = start + length(data, at)[0]
            if at > last:
                raise ValueError("it is truncated")
            yield start, at
        self.at = at

    def pass_by(self, kind: int) -> None:
        """A value that may not be wanted."""
        start = self.at
        if kind == ARRAY and self.scalar("I") == STRING:
            deque(self.strings(self.count()), maxlen=0)
        else:
            self.at = start
            self.value(kind)

    def blocks(self) -> tuple[str, Blocks]:
        name, dims = self.string(), self.scalar("I")
        if dims > MOST_DIMS:
            raise ValueError(f"tensor {name!r} has {dims} dimensions")
        shape = tuple(reversed([self.scalar("Q") for _ in range(dims)]))
        return name, Blocks(self.scalar("I"), shape, self.scalar("Q"))


class Metadata(Mapping[str, Any]):
    """Values by key. Each is read when it is asked for: a launch opens the file several times, and few want a vocabulary."""

    def __init__(self, walk: HeaderWalk, count: int) -> None:
        self._data = walk.data
        self._read: dict[str, Any] = {}
        self._places: dict[str, tuple[int, int]] = {}  # of a value: its kind, and where it lies
        for _ in range(count):
            key, kind = walk.string(), walk.scalar("I")
            self._places[key] = kind, walk.at
            walk.pass_by(kind)

    def __getitem__(self, key: str) -> Any:
        if key not in self._read:
            kind, at = self._places[key]
            self._read[key] = HeaderWalk(self._data, at).value(kind)
        return self._read[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class GgufFile:
    """``metadata`` holds every key, while the file is open; ``tensors`` where each tensor lies, by the file's bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._workers = ThreadPoolExecutor(min(usable_cores(), MOST_WORKERS))  # has no threads before there is work
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._read_header(HeaderWalk(self._map))
        except (ValueError, struct.error, RecursionError) as error:
            raise broken(path, str(error) if type(error) is ValueError else "it is truncated") from None

    def _read_header(self, walk: HeaderWalk) -> None:
        if walk.data[:4] != b"GGUF":
            raise ValueError("it is not a GGUF file")
        walk.at = 4
        version = walk.scalar("I")
        if version not in (2, 3):
            raise ValueError(f"its GGUF version is {version}, not 2 or 3 (of a little-endian machine)")
        tensors, keys = walk.count(), walk.count()
        self.metadata = Metadata(walk, keys)
        self.tensors: dict[str, Blocks] = {}
        for _ in range(tensors):
            name, at = walk.blocks()
            if name in self.tensors:
                raise ValueError(f"it has tensor {name!r} twice")
            self.tensors[name] = at
        alignment = self.metadata.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or alignment < 1:
            raise ValueError(f"its alignment is {alignment!r}")
        start = -(-walk.at // alignment) * alignment
        self.tensors = {name: Blocks(at.kind, at.shape, start + at.offset) for name, at in self.tensors.items()}

    def check(self) -> None:
        """:raises UserError: unless every tensor lies inside the file, in a format that is known."""
        try:
            for name in self.tensors:
                if self._end(name) > len(self._map):
                    raise ValueError(
                        f"tensor {name!r} ends at byte {self._end(name)}, but the file has {len(self._map)}: it is truncated"
                    )
        except ValueError as error:
            raise broken(self.path, str(error)) from None

    def _row_bytes(self, name: str) -> int:
        at = self.tensors[name]
        block, size = self._block(name, at.kind)
        width = at.shape[-1] if at.shape else 1
        if width % block:
            raise ValueError(f"tensor {name!r} has rows of {width}, which blocks of {block} do not fill")
        return width // block * size

    def _block(self, name: str, kind: int) -> tuple[int, int]:
        """(values, bytes)"""
        if kind in PLAIN:
            return 1, 4 if PLAIN[kind] == "f4" else 2
        if kind in gguf_blocks.FORMATS:
            return gguf_blocks.VALUES, gguf_blocks.FORMATS[kind][0].itemsize
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise ValueError(f"tensor {name!r} has the unknown format number {kind}") from None
        return int(block), int(size)

    def _end(self, name: str) -> int:
        at = self.tensors[name]
        return at.offset + prod(at.shape[:-1]) * self._row_bytes(name)

    def tensor(self, name: str) -> Tensor:
        """float32 values; plain tensors are mapped where they are aligned, packed ones are computed."""
        at = self.tensors[name]
        raw = np.frombuffer(self._map, np.uint8, self._end(name) - at.offset, at.offset)
        if at.kind in PLAIN:
            import ml_dtypes  # noqa: F401 - numpy learns of bfloat16 by it

            plain = np.dtype(PLAIN[at.kind])
            if at.offset % plain.itemsize == 0:
                mapped: Tensor = raw.view(plain).reshape(at.shape)
                return mapped
        values = np.empty(prod(at.shape), np.float32)
        if at.kind in gguf_blocks.FORMATS:
            self._unpack(at.kind, raw, values)
        else:
            self._unpack_by_package(name, raw, values)
        return values.reshape(at.shape)

    def _unpack(self, kind: int, raw: NDArray[np.uint8], values: NDArray[np.float32]) -> None:
        size = gguf_blocks.FORMATS[kind][0].itemsize

        def unpack(start: int) -> None:
            first = start // gguf_blocks.VALUES * size
            last = first + CHUNK // gguf_blocks.VALUES * size
            gguf_blocks.unpack(kind, raw[first:last], values[start : start + CHUNK])

        deque(self._workers.map(unpack, range(0, len(values), CHUNK)), maxlen=0)

    def _unpack_by_package(self, name: str, raw: NDArray[np.uint8], values: NDArray[np.float32]) -> None:
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        kind, row_bytes = GGMLQuantizationType(self.tensors[name].kind), self._row_bytes(name)
        rows = raw.reshape(-1, row_bytes)
        # The package takes sixteen rows at a time, whatever their length: of short ones some are given to it as one.
        together = gcd(len(rows), TOGETHER)
        rows = rows.reshape(len(rows) // together, -1)
        own = values.reshape(len(rows), -1)
        step = max(1, CHUNK // own.shape[1])  # the package's own temporaries are as large as what it is given

        def unpack(start: int) -> None:
            own[start : start + step] = dequantize(rows[start : start + step], kind)

        try:
            deque(self._workers.map(unpack, range(0, len(rows), step)), maxlen=0)
        except NotImplementedError:
            raise UserError.of(
                f"cannot read {self.path}: tensor {name!r} is stored as {kind.name}, which nothing here unpacks",
                "",
                "choose a file of another format, such as Q8_0 or Q4_K",
            ) from None

    def release(self, name: str) -> None:
        start = self.tensors[name].offset
        start -= start % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_DONTNEED, start, self._end(name) - start)

    def close(self) -> None:
        self._workers.shutdown()
        with suppress(BufferError):  # where somebody still holds a view, the map goes with the last one
            self._map.close()


def broken(path: Path, why: str) -> UserError:
    return UserError.of(f"cannot read {path}: {why}", "", "fetch the file again: it is damaged, or not what it seems")
