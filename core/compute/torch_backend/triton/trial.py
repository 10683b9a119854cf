"""What an operation is tried with: a decode step's inputs, the same numbers for the backend and for plain torch in float32."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.compute.torch_backend.attention import PagedKV
from core.compute.torch_backend.backend import Norm, TorchBackend
from core.compute.torch_backend.fp8 import BlockFp8Linear
from core.compute.torch_backend.fp8_codes import emulated
from core.compute.torch_backend.linear import DenseLinear, TorchLinear
from core.compute.torch_backend.triton.packed import TiledLinear
from core.interfaces.compute import Layer, Linear, SamplingRows, StepBatch
from core.interfaces.model import LINEAR_ROLES

ATTENTION = "attention"
OPERATIONS = (*LINEAR_ROLES, ATTENTION)


@dataclass
class Inputs:
    """Of a decode step of some sequences: the same numbers for a backend and for its twin."""

    layers: Sequence[Layer]  # the first is what operations are tried with
    norm: Norm
    head: TorchLinear
    kv: PagedKV
    step: Any
    slots: Tensor
    given: Mapping[str, Tensor]  # hidden, q, mixed, gated [rows, width of each], keys, values
    residual: Tensor

    def afresh(self) -> None:
        """What operations write to is as it was before; what qkv has to write is no number."""
        self.residual.copy_(self.given["hidden"])
        for cache, name in ((self.kv.keys, "keys"), (self.kv.values, "values")):
            for pages in cache:
                pages.copy_(self.given[name])

    def run(self, backend: TorchBackend, operation: str) -> tuple[Tensor, ...]:
        hidden, layer = self.given["hidden"], self.layers[0]
        if operation == "qkv":
            q = backend.qkv(hidden, layer.input_norm, layer.qkv, self.kv, 0, self.step)
            return (q, *(cache[0].flatten(0, 1) for cache in (self.kv.keys, self.kv.values)))
        if operation == ATTENTION:
            return (backend.attention(self.given["q"], self.kv, 0, self.step),)
        if operation == "gate_up":
            return (backend.gate_up(hidden, layer.post_norm, layer.gate_up),)
        if operation == "head":
            return (backend.logits(hidden, self.norm, self.head, self.step),)
        x, weight = (self.given["mixed"], layer.o) if operation == "o" else (self.given["gated"], layer.down)
        return (backend.linear_add(x, weight, self.residual),)

    def run_layers(self, backend: TorchBackend, operation: str) -> None:
        """All of them, one after the other as in a step; before the head, one, and the likeliest tokens behind it."""
        hidden = self.residual.copy_(self.given["hidden"])
        if operation != "head":
            backend.layers(hidden, self.layers, self.kv, self.step)
            return
        hidden = backend.layers(hidden, self.layers[:1], self.kv, self.step)
        backend.argmax(backend.logits(hidden, self.norm, self.head, self.step))

    def results(self, backend: TorchBackend, operation: str) -> list[Tensor]:
        """In float32. Of keys and values, those that were written."""
        self.afresh()
        if operation == "qkv":
            for cache in (self.kv.keys[0], self.kv.values[0]):
                cache.flatten(0, 1)[self.slots] = math.nan
        first, *written = self.run(backend, operation)
        return [first.float().clone(), *(cache[self.slots].float() for cache in written)]


class EmulatedFp8(TorchLinear):
    def __init__(self, linear: BlockFp8Linear) -> None:
        super().__init__(linear.role, (linear.out_features, linear.in_features), linear.nbytes, "emulated")
        self._linear = linear

    def __call__(self, x: Tensor) -> Tensor:
        return emulated(x, self._linear.codes, self._linear.scale, x.dtype)


def in_float32(linear: Linear) -> TorchLinear:
    """The same projection for plain torch."""
    if isinstance(linear, BlockFp8Linear):
        return EmulatedFp8(linear)
    if isinstance(linear, TiledLinear):
        return DenseLinear(linear.role, linear.unpacked(torch.float32), "float32")
    assert isinstance(linear, TorchLinear)
    return DenseLinear(linear.role, linear.weight.float(), "float32") if isinstance(linear, DenseLinear) else linear


def decode_step(rows: int, context: int, page_size: int) -> StepBatch:
    """One token each, behind ``context`` - 1 in pages of its own."""
    pages = -(-context // page_size)
    table = np.arange(rows * pages, dtype=np.int32).reshape(rows, pages)
    last = context - 1
    number = np.zeros(rows, dtype=np.float32)
    sampling = SamplingRows(
        temperature=number,
        top_k=np.zeros(rows, np.int32),
        top_p=number + 1,
        min_p=number,
        seeds=np.zeros(rows, np.uint64),
        positions=np.full(rows, context, np.int64),
        logprobs=np.full(rows, -1, np.int32),
        all_greedy=True,
    )
    return StepBatch(
        token_ids=np.zeros(rows, np.int32),
        positions=np.full(rows, last, np.int32),
        slots=table[:, last // page_size].astype(np.int64) * page_size + last % page_size,
        query_starts=np.arange(rows + 1, dtype=np.int32),
        context_lens=np.full(rows, context, np.int32),
        page_table=table,
        logit_rows=np.arange(rows),
        num_decodes=rows,
        sampling=sampling,
    )
