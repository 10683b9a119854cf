"""A device of Paddle's: its name, its memory, arrays on their way to it, and what to say when it is full."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import paddle
from numpy.typing import NDArray
from paddle import Tensor

from core.errors import UserError
from core.host import free_and_total_memory

Place = Any  # paddle.CPUPlace or paddle.CUDAPlace


def place_of(device: str) -> Place:
    """ "cpu" or "cuda:0". The device becomes the one that new tensors are made on."""
    if device == "cpu":
        paddle.set_device("cpu")
        return paddle.CPUPlace()
    if not paddle.is_compiled_with_cuda():
        raise UserError.of(
            f"device is {device}, and this paddlepaddle {paddle.__version__} is made for CPUs",
            "device",
            "install paddlepaddle-gpu",
            "--device cpu",
        )
    index = int(device.partition(":")[2] or 0)
    paddle.set_device(f"gpu:{index}")
    return paddle.CUDAPlace(index)


def use_threads(number: int) -> None:
    """Of a CPU, for matrix products."""
    paddle.base.core.set_num_threads(number)


def free_and_total(place: Place) -> tuple[int, int]:
    if isinstance(place, paddle.CPUPlace):
        return free_and_total_memory()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    paddle.device.synchronize()  # whose context the driver answers for
    status = ctypes.CDLL("libcuda.so.1").cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
    if status:
        raise RuntimeError(f"the CUDA driver does not say how much memory is free: error {status}")
    return free.value, total.value


def to_device(array: NDArray[Any], place: Place) -> Tensor:
    """A copy. Sixteen bits without a sign are what Paddle takes for bfloat16."""
    return paddle.to_tensor(array, place=place)


def adopted(array: NDArray[Any], place: Place) -> Tensor:
    """An array that nobody else writes to: on a CPU its own memory, elsewhere a copy. Not for bfloat16 on a CPU."""
    return paddle.from_dlpack(array) if isinstance(place, paddle.CPUPlace) else to_device(array, place)


@contextmanager
def memory_for(what: str, *remedies: str) -> Iterator[None]:
    """Tell the user what did not fit, and what to do, instead of showing an allocator's traceback."""
    try:
        yield
    except (MemoryError, RuntimeError, SystemError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error).lower():
            raise
        raise UserError.of(f"there is not enough memory for {what}", "", *remedies) from error
