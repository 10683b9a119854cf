"""Projections whose products are native: each is described at an address, which the calls around them take."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field

import torch
from torch import Tensor

from core.compute.torch_backend.linear import KERNELS, QuantizedKernel, Target, TorchLinear
from core.compute.torch_backend.native import library
from core.compute.torch_backend.native.library import ADDRESS, NUMBER
from core.compute.torch_backend.native.memory import HugePages
from core.interfaces.model import Role

NATIVE_KERNELS: dict[str, QuantizedKernel] = {}
"""Native linears that multiply by a packed layout as it is, by the layout's name; asked before those of torch."""
AT_A_TIME = 512  # tokens whose products are made in one call


class NativeLinear(TorchLinear):
    def describe(self, native: int | None) -> None:
        """``native``: address of a ``Linear`` (src/linear.h), freed with this object."""
        if not native:
            raise MemoryError
        self.native = native
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
    """bfloat16, rearranged into panels. Steps of every size are native: oneDNN would pack the weights anew each time.

    In float32 none are: who asks for it wants exactness, and other orders of summing take the demo's logits further from
    transformers'.
    """

    def __init__(self, role: Role, weight: Tensor, format: str, memory: HugePages) -> None:
        rows, columns = weight.shape
        panel = int(library.function("dense_panel", result=NUMBER)())  # rows that lie side by side
        self._pairs = memory.empty((-(-rows // panel), -(-columns // 2), panel, 2), torch.bfloat16)
        super().__init__(role, weight.shape, self._pairs.nbytes, format)
        new = library.function("dense_new", ADDRESS, NUMBER, NUMBER, result=ADDRESS)
        self.describe(new(self._pairs.data_ptr(), rows, columns))
        arrange = library.function("dense_arrange", ADDRESS, ADDRESS, ADDRESS)
        arrange(self.native, weight.contiguous().data_ptr(), self._pairs.data_ptr())
        self._look_up = library.function("dense_look_up", ADDRESS, ADDRESS, NUMBER, ADDRESS)

    def rows(self, ids: Tensor) -> Tensor:
        """Of the matrix, as an embedding gives them."""
        ids = ids.int()
        out = torch.empty((len(ids), self.in_features), dtype=torch.bfloat16)
        self._look_up(self.native, ids.data_ptr(), len(ids), out.data_ptr())
        return out


@dataclass(frozen=True)
class NativeTarget(Target):
    """bfloat16 weights are rearranged into huge pages, for native products."""

    memory: HugePages = field(default_factory=HugePages, compare=False)

    @property
    def packs(self) -> bool:
        return False

    def linear(self, role: Role, dense: Tensor, format: str) -> TorchLinear:
        if self.dtype != torch.bfloat16:
            return super().linear(role, dense, format)
        return NativeDense(role, dense, f"{format} in native kernels", self.memory)

    def tied_head(self, embedding: Tensor | NativeDense) -> TorchLinear:
        if isinstance(embedding, NativeDense):
            return embedding
        if self.dtype != torch.bfloat16:
            return super().tied_head(embedding)
        format = f"{self.format} in native kernels, beside the embedding it is tied to"
        return NativeDense("head", embedding, format, self.memory)

    def embedding_and_head(self, table: Tensor) -> NativeDense:
        format = f"{self.format} in native kernels, the embedding it is tied to"
        return NativeDense("head", table, format, self.memory)

    def kernel(self, layout: str) -> QuantizedKernel | None:
        native, other = NATIVE_KERNELS.get(layout), KERNELS.get(layout)
        if native is None or other is None:
            return native or other
        return lambda role, packed, target: native(role, packed, target) or other(role, packed, target)
