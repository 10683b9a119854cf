"""One .safetensors file, mapped: a JSON header that says where each tensor's bytes lie, then the bytes.

Nothing is trusted: every offset is checked against the file before an array is made of it.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from core.errors import UserError
from core.interfaces.model import Tensor

LONGEST_HEADER = 100 << 20
DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


@dataclass(frozen=True, slots=True)
class Span:
    """A tensor in a file: bytes ``start`` to ``end``, counted from the beginning of the file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    end: int


class SafetensorsFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.spans = read_header(path)
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def tensor(self, name: str) -> Tensor:
        span = self.spans[name]
        count = prod(span.shape)
        if count == 0:
            return np.empty(span.shape, span.dtype)
        if span.start % span.dtype.itemsize:  # allowed by the format; views want aligned numbers
            return np.frombuffer(self._map[span.start : span.end], span.dtype).reshape(span.shape)
        return np.frombuffer(self._map, span.dtype, count, span.start).reshape(span.shape)

    def release(self, name: str) -> None:
        """Drop the tensor's pages from this process; touching the view again would read them from the file again."""
        span = self.spans[name]
        start = span.start - span.start % mmap.PAGESIZE
        if span.end > start:
            self._map.madvise(mmap.MADV_DONTNEED, start, span.end - start)

    def close(self) -> None:
        with suppress(BufferError):  # where somebody still holds a view, the map goes with the last one
            self._map.close()


def broken(path: Path, why: str) -> UserError:
    return UserError.of(
        f"cannot read {path}: {why}", "", "fetch the checkpoint again: the file is damaged or not a safetensors file"
    )


def read_header(path: Path) -> dict[str, Span]:
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(8)
        length = int.from_bytes(first, "little")
        if len(first) < 8:
            raise broken(path, f"it has {size} bytes, too few for a header")
        if length > LONGEST_HEADER:
            raise broken(path, f"its header claims {length} bytes")
        if 8 + length > size:
            raise broken(path, f"its header claims {length} bytes, but the file has {size}")
        raw = file.read(length)
    try:
        header = json.loads(raw, object_pairs_hook=lambda pairs: without_duplicates(path, pairs))
    except (ValueError, RecursionError):
        raise broken(path, "its header is not JSON") from None
    if not isinstance(header, dict):
        raise broken(path, "its header is not a table")
    header.pop("__metadata__", None)
    spans = {name: read_span(path, name, entry, 8 + length, size) for name, entry in header.items()}
    check_overlaps(path, spans)
    return spans


def without_duplicates(path: Path, pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise broken(path, f"its header has {key!r} twice")
        table[key] = value
    return table


def read_span(path: Path, name: str, entry: Any, base: int, size: int) -> Span:
    try:
        code, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        numbers = (*shape, begin, end)
    except (TypeError, KeyError, ValueError):
        raise broken(path, f"tensor {name!r} is not described by dtype, shape and data_offsets") from None
    if not all(type(value) is int and value >= 0 for value in numbers):
        raise broken(path, f"tensor {name!r} has a shape or an offset that is no whole number")
    if code not in DTYPES:
        raise UserError.of(
            f"cannot read {path}: tensor {name!r} has the unknown dtype {code!r}",
            "",
            f"convert the checkpoint to one of {', '.join(DTYPES)}",
        )
    dtype = DTYPES[code]
    if end < begin or base + end > size:
        raise broken(path, f"tensor {name!r} ends at byte {base + end}, but the file has {size}: it is truncated")
    if end - begin != prod(shape) * dtype.itemsize:
        raise broken(path, f"tensor {name!r} of shape {list(shape)} and dtype {code} cannot have {end - begin} bytes")
    return Span(dtype, shape, base + begin, base + end)


def check_overlaps(path: Path, spans: dict[str, Span]) -> None:
    ordered = sorted(spans.items(), key=lambda item: (item[1].start, item[1].end))
    for (left, before), (right, after) in pairwise(ordered):
        if after.start < before.end:
            raise broken(path, f"tensors {left!r} and {right!r} overlap")
