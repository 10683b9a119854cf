"""Products with weights of layout "fp8_block": e4m3 in blocks of 128 x 128, activations rounded to e4m3 by token.

On a CUDA device that multiplies such codes it is a Triton kernel; ``fp8_codes.emulated`` is its twin in plain torch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from core.compute.torch_backend.fp8_codes import BLOCK, emulated
from core.compute.torch_backend.linear import QuantizedKernel, Target, TorchLinear, borrowed
from core.errors import UserError
from core.interfaces.model import Role
from core.interfaces.quantizer import Packed

Product = Callable[[Tensor, Tensor, Tensor, torch.dtype], Tensor]
"""(activations [T, in], codes [out, in], scales [out / 128, in / 128], dtype of the result) -> [T, out]"""


class BlockFp8Linear(TorchLinear):
    def __init__(self, role: Role, packed: Packed, device: torch.device, product: Product, how: str = "") -> None:
        self.codes, self.scale = (borrowed(packed.arrays[key]).to(device, copy=True) for key in ("codes", "scale"))
        self._product = product
        super().__init__(role, packed.shape, packed.nbytes, f"e4m3 in blocks of {BLOCK}, activations e4m3 by token{how}")

    def __call__(self, x: Tensor) -> Tensor:
        return self._product(x, self.codes, self.scale, x.dtype)

    def logits(self, x: Tensor) -> Tensor:
        return self._product(x, self.codes, self.scale, torch.float32)


def fp8_block(role: Role, packed: Packed, target: Target) -> TorchLinear:
    native = native_product(target.device)
    if native is None:  # a rule has seen to it that this was asked for
        return BlockFp8Linear(role, packed, target.device, emulated, ", emulated in float32")
    return BlockFp8Linear(role, packed, target.device, native)


@cache
def native_product(device: torch.device) -> Product | None:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        return None
    try:
        from core.compute.torch_backend.fp8_kernel import product
    except ImportError as error:
        raise UserError.of(
            f"fp8 on {device} needs Triton, which cannot be imported: {error}",
            "",
            "pip install triton",
            "--quantization wint8",
        ) from error
    return product


FP8_KERNELS: dict[str, QuantizedKernel] = {"fp8_block": fp8_block}
