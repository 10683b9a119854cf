"""Projections whose products are native: each is described at an address, which the calls around them take."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from core.compute.torch_backend.linear import KERNELS, QuantizedKernel, Target, TorchLinear
from core.compute.torch_backend.native import library
from core.compute.torch_backend.native.library import ADDRESS, NUMBER
from core.compute.torch_backend.native.memory import HugePages
from core.interfaces.model import Role

NATIVE_KERNELS: dict[str, QuantizedKernel] = {}
"""Native linears that multiply by a packed layout as it is, by the layout's name; asked before those of torch."""
MOST_TOKENS = {torch.bfloat16: 1 << 20, torch.float32: 0}
"""Of a step, up to which products with unpacked weights are native. In bfloat16 all: they keep up with oneDNN, which would pack
the weights anew each time. In float32 none: who asks for it wants exactness, and other orders of summing take the demo's
logits further from transformers'."""
AT_A_TIME = 512  # tokens whose products are made in one call


class NativeLinear(TorchLinear):
    def describe(self, native: int | None, most_tokens: int) -> None:
        """``native``: address of a ``Linear`` (src/linear.h), freed with this object. Above ``most_tokens``: ``__call__``."""
        if not native:
            raise MemoryError
        self.native, self.most_tokens = native, most_tokens
        weakref.finalize(self, library.function("linear_delete", ADDRESS), native)
        self._apply = library.function("linear_apply", ADDRESS, NUMBER, ADDRESS, NUMBER, ADDRESS)

    def product(self, x: Tensor) -> Tensor:
        """x W^T in float32, natively whatever the number of tokens."""
        x = x.contiguous()
        out = torch.empty((len(x), self.out_features), dtype=torch.float32)
        for first in range(0, len(x), AT_A_TIME):
            part, to = x[first : first + AT_A_TIME], out[first:]
            self._apply(self.native, x.dtype == torch.bfloat16, part.data_ptr(), len(part), to.data_ptr())
        return out

    def __call__(self, x: Tensor) -> Tensor:
        return self.product(x).to(x.dtype)

    def logits(self, x: Tensor) -> Tensor:
        return self.product(x)


class NativeDense(NativeLinear):
    """[out, in] as the checkpoint has it, in huge pages. A tied head is the embedding itself."""

    def __init__(self, role: Role, weight: Tensor, format: str, *, shared: bool = False) -> None:
        super().__init__(role, weight.shape, 0 if shared else weight.nbytes, format)
        self._weight = weight
        new = library.function("dense_new", ADDRESS, NUMBER, NUMBER, NUMBER, result=ADDRESS)
        self.describe(new(weight.data_ptr(), *weight.shape, weight.dtype == torch.bfloat16), MOST_TOKENS[weight.dtype])

    def __call__(self, x: Tensor) -> Tensor:
        if len(x) <= self.most_tokens:
            return super().__call__(x)
        return functional.linear(x, self._weight)

    def logits(self, x: Tensor) -> Tensor:
        return self.product(x) if self.most_tokens else self(x)


@dataclass(frozen=True)
class NativeTarget(Target):
    """Weights stay unpacked, in huge pages, for native products."""

    memory: HugePages = field(default_factory=HugePages, compare=False)

    @property
    def packs(self) -> bool:
        return False

    def empty(self, shape: tuple[int, ...]) -> Tensor:
        return self.memory.empty(shape, self.dtype)

    def linear(self, role: Role, dense: Tensor, format: str) -> TorchLinear:
        return NativeDense(role, dense, f"{format} in native kernels")

    def tied_head(self, embedding: Tensor) -> TorchLinear:
        return NativeDense("head", embedding, f"{self.format} in native kernels, the embedding it is tied to", shared=True)

    def kernel(self, layout: str) -> QuantizedKernel | None:
        native, other = NATIVE_KERNELS.get(layout), KERNELS.get(layout)
        if native is None or other is None:
            return native or other
        return lambda role, packed, target: native(role, packed, target) or other(role, packed, target)
