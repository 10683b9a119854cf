"""Products with weights of layout "fp8_block": e4m3 in blocks of 128 x 128, activations rounded to e4m3 by token.

A token's activations have a float32 scale for every 128 columns, from their largest. So a product is, in float32, the sum over
those groups of the group's sum of code * code times both scales. On a CUDA device that multiplies such codes it is a Triton
kernel; ``emulated`` is its twin in plain torch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from core.compute.torch_backend.linear import QuantizedKernel, Target, TorchLinear, borrowed
from core.errors import UserError
from core.interfaces.model import Role
from core.interfaces.quantizer import Packed

BLOCK = 128
LARGEST = 448.0  # of e4m3
SMALLEST = 1e-30  # scale of a group: one of zeros has one too
ROWS = 32 * BLOCK  # rows of weights that are float32 at a time when emulated

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


def emulated(x: Tensor, codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    rounded = values(*by_token(x))
    parts = zip(torch.split(codes, ROWS), torch.split(scale, ROWS // BLOCK), strict=True)
    return torch.cat([functional.linear(rounded, values(part, of_part)) for part, of_part in parts], 1).to(dtype)


def by_token(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [T, in] and scales [T, in / 128] of activations [T, in]."""
    groups = -(-x.shape[1] // BLOCK)
    filled = functional.pad(x.float(), (0, -x.shape[1] % BLOCK)).view(len(x), groups, BLOCK)
    scale = (filled.abs().amax(2) * (1 / LARGEST)).clamp(min=SMALLEST)
    codes = (filled * (1 / scale)[..., None]).flatten(1)[:, : x.shape[1]]
    return codes.to(torch.float8_e4m3fn), scale


def values(codes: Tensor, scale: Tensor) -> Tensor:
    """Float32 [rows, in]; ``scale`` [rows or blocks of rows, blocks of columns]."""
    each = scale.repeat_interleave(BLOCK, 1)[:, : codes.shape[1]]
    if len(scale) != len(codes):
        each = each.repeat_interleave(BLOCK, 0)[: len(codes)]
    return codes.float() * each


FP8_KERNELS: dict[str, QuantizedKernel] = {"fp8_block": fp8_block}
