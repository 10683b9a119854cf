"""The loaded library: its functions, with their arguments' types told once, and its team of threads."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

from core.compute.torch_backend.native import build

ADDRESS = ctypes.c_void_p
"""Of memory, as ``tensor.data_ptr()`` gives it. Whoever passes one keeps the tensor alive."""
NUMBER = ctypes.c_int64
REAL = ctypes.c_float


@cache
def _loaded() -> ctypes.CDLL:
    return ctypes.CDLL(str(build.library()))


def function(name: str, *arguments: Any, result: Any = None) -> Callable[..., Any]:
    """A C function, ready to be called; it lets go of the interpreter meanwhile.

    :raises NotBuiltError: when the library is not to be had.
    """
    found = getattr(_loaded(), name)
    found.argtypes = arguments
    found.restype = result
    call: Callable[..., Any] = found
    return call


def start(threads: int) -> None:
    """The team that the kernels' regions run on, the caller included."""
    function("team_start", NUMBER)(threads)


def instructions() -> str:
    """What the compiler made use of: "avx512 bf16 vnni", "avx2", "portable"."""
    text: bytes = function("instructions", result=ctypes.c_char_p)()
    return text.decode()
