"""Projections whose products are native: each is described at an address, which the calls around them take."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from core.compute import parts
from core.compute.torch_backend.linear import KERNELS, EvenLinear, QuantizedKernel, Target, TorchLinear, borrowed
from core.compute.torch_backend.native import library
from core.compute.torch_backend.native.library import ADDRESS, NUMBER
from core.compute.torch_backend.native.memory import HugePages
from core.interfaces.model import DecoderSpec, Role, Weight

NATIVE_KERNELS: dict[str, QuantizedKernel] = {}
"""Native linears that multiply by a packed layout as it is, by the layout's name; asked before those of torch."""
Part: TypeAlias = tuple[slice, Tensor]
"""Rows of a matrix, and what they are."""
ARRANGED = (torch.bfloat16, torch.float32)
AT_A_TIME = 512  # tokens whose products are made in one call


class NativeLinear(TorchLinear):
    row_by_row = True

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

    def __init__(self, role: Role, shape: tuple[int, ...], parts: Iterable[Part], format: str, memory: HugePages) -> None:
        """``parts``: of the matrix, in their order; nothing of them is kept."""
        rows, columns = shape
        panel = int(library.function("dense_panel", result=NUMBER)())  # rows that lie side by side
        self._pairs = memory.empty((-(-rows // panel), -(-columns // 2), panel, 2), torch.bfloat16)
        super().__init__(role, shape, self._pairs.nbytes, format)
        new = library.function("dense_new", ADDRESS, NUMBER, NUMBER, result=ADDRESS)
        self.describe(new(self._pairs.data_ptr(), rows, columns))
        arrange = library.function("dense_arrange", ADDRESS, NUMBER, ADDRESS, NUMBER, NUMBER, ADDRESS)
        for own, part in whole_panels(parts, panel, columns):
            part = (part if part.dtype in ARRANGED else part.to(torch.bfloat16)).contiguous()
            kind = int(part.dtype == torch.bfloat16)
            arrange(self.native, kind, part.data_ptr(), own.start, own.stop, self._pairs.data_ptr())
        self._look_up = library.function("dense_look_up", ADDRESS, ADDRESS, NUMBER, ADDRESS)

    def rows(self, ids: Tensor) -> Tensor:
        """Of the matrix, as an embedding gives them."""
        ids = ids.int()
        out = torch.empty((len(ids), self.in_features), dtype=torch.bfloat16)
        self._look_up(self.native, ids.data_ptr(), len(ids), out.data_ptr())
        return out


def whole(matrix: Tensor) -> list[Part]:
    return [(slice(0, len(matrix)), matrix)]


def whole_panels(parts: Iterable[Part], panel: int, columns: int) -> Iterator[Part]:
    """The same rows, those that share a panel with rows of another part put together with them."""
    waiting: list[Tensor] = []
    first = 0
    for own, part in parts:
        waiting.append(part)
        if own.stop % panel == 0:
            yield slice(first, own.stop), waiting[0] if len(waiting) == 1 else torch.cat([each.float() for each in waiting])
            first, waiting = own.stop, []
    if waiting:
        rows = torch.cat([each.float() for each in waiting]) if len(waiting) > 1 else waiting[0]
        yield slice(first, first + len(rows)), rows


@dataclass(frozen=True)
class NativeTarget(Target):
    """bfloat16 weights are rearranged into huge pages, for native products. ``even``: others are ``EvenLinear``."""

    memory: HugePages = field(default_factory=HugePages, compare=False)
    even: bool = False

    @property
    def packs(self) -> bool:
        return False

    def linear(self, role: Role, dense: Tensor, format: str) -> TorchLinear:
        if self.dtype != torch.bfloat16:
            return EvenLinear(role, dense, format) if self.even else super().linear(role, dense, format)
        return NativeDense(role, dense.shape, whole(dense), f"{format} in native kernels", self.memory)

    def dense(self, weight: Weight, spec: DecoderSpec) -> TorchLinear:
        if self.dtype != torch.bfloat16:
            return super().dense(weight, spec)
        return self._of_parts(weight, spec, f"{self.format} in native kernels")

    def _of_parts(self, weight: Weight, spec: DecoderSpec, format: str) -> NativeDense:
        role = weight.name.role
        own = ((rows, borrowed(part)) for rows, part in parts.dense(weight))
        return NativeDense("head" if role == "embed" else role, spec.shape(role), own, format, self.memory)

    def tied_head(self, embedding: Tensor | NativeDense) -> TorchLinear:
        if isinstance(embedding, NativeDense):
            return embedding
        if self.dtype != torch.bfloat16:
            if self.even:
                return EvenLinear("head", embedding, f"{self.format}, the embedding it is tied to", shared=True)
            return super().tied_head(embedding)
        format = f"{self.format} in native kernels, beside the embedding it is tied to"
        return NativeDense("head", embedding.shape, whole(embedding), format, self.memory)

    def embedding_and_head(self, weight: Weight, spec: DecoderSpec) -> NativeDense:
        """``weight``: the embedding of a tied model."""
        return self._of_parts(weight, spec, f"{self.format} in native kernels, the embedding it is tied to")

    def kernel(self, layout: str) -> QuantizedKernel | None:
        native, other = NATIVE_KERNELS.get(layout), KERNELS.get(layout)
        if native is None or other is None:
            return native or other
        return lambda role, packed, target: native(role, packed, target) or other(role, packed, target)
