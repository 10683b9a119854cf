"""Weights in eight or four bits as quantizers pack them, times activations rounded to eight bits or sixteen, in native code."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

from core.compute.torch_backend.linear import QuantizedKernel, Target, TorchLinear, borrowed
from core.compute.torch_backend.native import library
from core.compute.torch_backend.native.library import ADDRESS, NUMBER
from core.compute.torch_backend.native.linear import NativeLinear, NativeTarget
from core.compute.torch_backend.native.memory import HugePages
from core.interfaces.model import Role
from core.interfaces.quantizer import Packed

BLOCK = 32  # activations that share a scale; groups of weights are whole blocks


class PackedLinear(NativeLinear):
    """Layout "int8_row" or "int4_group", times activations in blocks of 32, each block with a scale of its own.

    Products are summed exactly within a block, and blocks in one order whatever else is multiplied: a row comes out the same
    to the last bit, alone or among others. Sixteen bits are two digits in base 256, each multiplied as a row.
    """

    def __init__(self, role: Role, packed: Packed, memory: HugePages) -> None:
        codes, scale = borrowed(packed.arrays["codes"]).contiguous(), borrowed(packed.arrays["scale"])
        rows, columns = packed.shape
        bits = 8 if codes.dtype == torch.int8 else 4
        digits = 1 if packed.constants.get("activations") == "int8" else 2
        groups = scale.shape[1] if scale.dim() == 2 else 1
        group = int(packed.constants["group_size"]) if groups > 1 else 0
        new = library.function("packed_new", *(NUMBER,) * 5, result=ADDRESS)
        native = new(rows, columns, group, bits, digits)
        self.describe(native)
        self._panels = memory.empty((library.function("packed_bytes", ADDRESS, result=NUMBER)(native),), torch.uint8)
        arrange = library.function("packed_arrange", ADDRESS, ADDRESS, NUMBER, ADDRESS, ADDRESS)
        scale = scale if group else scale.float().contiguous()
        arrange(native, codes.data_ptr(), codes.shape[1], scale.data_ptr(), self._panels.data_ptr())
        name = "a row" if not group else f"in groups of {group}"
        said = f"int{bits} {name}, {8 * digits}-bit activations in blocks of {BLOCK}"
        super().__init__(role, packed.shape, self._panels.nbytes, said)


def instructions() -> str:
    """What the products are made of here: "avx512 vnni", "avx vnni", "avx2"; nothing where there are none."""
    text: bytes = library.function("packed_instructions", result=ctypes.c_char_p)()
    return text.decode()


def placed(role: Role, packed: Packed, target: Target) -> TorchLinear | None:
    assert isinstance(target, NativeTarget)
    several = packed.arrays["scale"].ndim == 2 and packed.arrays["scale"].shape[1] > 1
    fits = not (several and int(packed.constants["group_size"]) % BLOCK)
    return PackedLinear(role, packed, target.memory) if fits and instructions() and works() else None


@cache
def works() -> bool:
    """Whether what was compiled here multiplies rightly."""
    random, memory = np.random.default_rng(0), HugePages()
    x = random.standard_normal((9, 96), dtype=np.float32)
    signed = random.integers(-127, 128, (40, 96), dtype=np.int8)
    signed[::7], signed[1::7] = 127, -127  # sums of pairs that overflow sixteen bits
    halves = random.integers(0, 16, (40, 96), dtype=np.uint8)
    scale = random.random((40, 3), dtype=np.float32).astype(ml_dtypes.bfloat16)
    eight: dict[str, NDArray[Any]] = {"codes": signed, "scale": np.ones(40, np.float32)}
    four: dict[str, NDArray[Any]] = {"codes": halves[:, ::2] | halves[:, 1::2] << 4, "scale": scale}
    grouped = (halves.astype(np.float32) - 8) * scale.astype(np.float32).repeat(BLOCK, 1)
    for kind, allowed in (("int8", 2e-2), ("int16", 2e-4)):
        for arrays, values in ((eight, signed.astype(np.float32)), (four, grouped)):
            linear = PackedLinear("o", Packed((40, 96), arrays, {"activations": kind, "group_size": BLOCK}), memory)
            right = x @ values.T
            for rows in (1, 9):
                error = np.abs(linear.logits(torch.from_numpy(x[:rows])).numpy() - right[:rows]).max()
                if not error < allowed * np.abs(right).max():
                    return False
    return True


KERNELS: dict[str, QuantizedKernel] = {"int8_row": placed, "int4_group": placed}
