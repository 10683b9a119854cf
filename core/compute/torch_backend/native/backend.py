"""The torch backend on a CPU with the operations of a step in C++. What is not overridden here is plain torch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.compute.torch_backend import machine
from core.compute.torch_backend.attention import PagedKV
from core.compute.torch_backend.backend import Norm, TorchBackend, not_deterministic, not_in_eight_bits
from core.compute.torch_backend.eight_bits import head_bytes
from core.compute.torch_backend.linear import TorchLinear, few_sizes
from core.compute.torch_backend.native import library, linear, packed
from core.compute.torch_backend.native.library import ADDRESS, NUMBER, REAL
from core.compute.torch_backend.native.linear import NativeDense, NativeTarget
from core.compute.torch_backend.native.step import NativeKV, NativeStep, refusal, upload
from core.compute.torch_backend.step import Step
from core.interfaces.compute import DType, KVCache, Layer, Linear, StepBatch
from core.interfaces.model import DecoderSpec, Weight
from core.interfaces.quantizer import Quantizer

linear.NATIVE_KERNELS |= packed.KERNELS
log = logging.getLogger("dovetail.compute")
DTYPES: tuple[DType, ...] = ("bfloat16", "float32")


class Described:
    """Layers as an array of structs (src/layer.h), where all of them are native."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = layers
        fields = [field for layer in layers for field in _fields(layer)]
        self._fields = np.array(fields, np.int64)
        self.address = self._fields.ctypes.data if all(fields) else 0


def _fields(layer: Layer) -> list[int]:
    linears, norms = (layer.qkv, layer.o, layer.gate_up, layer.down), (layer.input_norm, layer.post_norm)
    natives = [linear.native if isinstance(linear, TorchLinear) else 0 for linear in linears]
    return [*natives, *(norm.weight.data_ptr() for norm in norms), int(np.float64(layer.input_norm.eps).view(np.int64))]


class NativeBackend(TorchBackend):
    """In bfloat16 or float32. A call is native where the linear in it and the KV cache are; else torch's, around it."""

    def __init__(self, dtype: DType, threads: int = 0, *, deterministic: bool = False, kv_in_eight_bits: bool = False) -> None:
        """``deterministic``: what comes of a token does not depend on the step it is computed in. ``kv_in_eight_bits``: each
        head of a key and of a value is held as whole numbers of eight bits, times a number of its own.

        :raises NotBuiltError: when the library cannot be had.
        """
        super().__init__("cpu", dtype, threads, deterministic=deterministic)
        library.start(torch.get_num_threads())
        self._target = self._native = NativeTarget(self._target.device, self._target.dtype, even=deterministic)
        self.kv_in_eight_bits = kv_in_eight_bits
        self._bfloat16 = int(dtype == "bfloat16")
        shape, step, pages, around = ADDRESS, ADDRESS, (ADDRESS, ADDRESS), (ADDRESS, ADDRESS, REAL)
        self._rms_norm = library.function("rms_norm", NUMBER, *around, NUMBER, NUMBER, ADDRESS)
        self._rotate_and_place = library.function("rotate_and_place", shape, step, ADDRESS, *pages, ADDRESS)
        self._silu_times = library.function("silu_times", NUMBER, ADDRESS, NUMBER, NUMBER, ADDRESS)
        self._attention = library.function("attention", shape, step, ADDRESS, *pages, ADDRESS)
        self._linear_qkv = library.function("linear_qkv", ADDRESS, *around, shape, step, *pages, ADDRESS)
        self._linear_add = library.function("linear_add", ADDRESS, NUMBER, ADDRESS, NUMBER, ADDRESS)
        self._linear_gate_up = library.function("linear_gate_up", ADDRESS, NUMBER, *around, NUMBER, ADDRESS)
        self._whole_layers = library.function("whole_layers", ADDRESS, NUMBER, shape, step, *pages, ADDRESS)
        self._largest_places = library.function("largest_places", ADDRESS, NUMBER, NUMBER, ADDRESS)
        self._layers: Described = Described(())
        self._linear_logits = library.function("linear_logits", ADDRESS, NUMBER, *around, NUMBER, ADDRESS)

    def place(self, weight: Weight, spec: DecoderSpec, quantizer: Quantizer | None) -> Any:
        head_apart = self.split or (quantizer is not None and "head" in quantizer.roles)
        if weight.name.role != "embed" or not spec.tied_head or not self._bfloat16 or head_apart:
            return super().place(weight, spec, quantizer)
        with machine.memory_for(f"the weights of the model, at {weight.name}", "take a smaller model", "free memory"):
            self._embedding = self._native.embedding_and_head(weight, spec)
        return self._embedding

    def embed(self, table: Tensor | NativeDense, step: Step | NativeStep) -> Tensor:
        return table.rows(step.token_ids) if isinstance(table, NativeDense) else super().embed(table, step)  # type: ignore[arg-type]

    def _kv_memory(self, spec: DecoderSpec, num_pages: int, page_size: int) -> PagedKV:
        why = refusal(spec)
        if why is not None:
            if self.kv_in_eight_bits:
                raise not_in_eight_bits(f"attention is left to plain torch: {why}")
            if self._deterministic:
                raise not_deterministic(
                    f"attention is left to plain torch, which picks how to add up by what a step has: {why}"
                )
            log.warning("attention and rope are computed in plain torch: %s", why)
            return super()._kv_memory(spec, num_pages, page_size)
        return NativeKV(spec, num_pages, page_size, self._target.dtype, whole=self._deterministic, eight=self.kv_in_eight_bits)

    def _kv_bytes_per_token(self, spec: DecoderSpec) -> int:
        element = self._target.dtype.itemsize
        return spec.kv_bytes_per_token(element, head_bytes(self.kv_in_eight_bits, spec.head_dim, element))

    def upload(self, batch: StepBatch, spec: DecoderSpec, kv: KVCache) -> Step | NativeStep:  # type: ignore[override]
        return upload(batch) if isinstance(kv, NativeKV) else super().upload(batch, spec, kv)

    def layers(self, hidden: Tensor, layers: Sequence[Layer], kv: KVCache, step: Step | NativeStep) -> Tensor:
        if self._layers.layers is not layers:
            self._layers = Described(layers)
        native = self._layers.address
        if not native or self.split or not isinstance(step, NativeStep):
            out: Tensor = super().layers(hidden, layers, kv, step)
            return out
        assert isinstance(kv, NativeKV)
        places = kv.key_places, kv.value_places
        self._whole_layers(native, len(layers), kv.shape, step.address, *places, hidden.data_ptr())
        return hidden

    def qkv(self, hidden: Tensor, norm: Norm, weight: Linear, kv: KVCache, layer: int, step: Step | NativeStep) -> Tensor:
        assert isinstance(weight, TorchLinear)
        if not isinstance(step, NativeStep):
            return super().qkv(hidden, norm, weight, kv, layer, step)
        assert isinstance(kv, NativeKV)
        q = torch.empty((step.tokens, kv.spec.q_width), dtype=hidden.dtype)
        places = kv.keys[layer].data_ptr(), kv.values[layer].data_ptr(), q.data_ptr()
        if weight.native:
            around = hidden.data_ptr(), norm.weight.data_ptr(), norm.eps
            self._linear_qkv(weight.native, *around, kv.shape, step.address, *places)
        else:
            heads = weight(self._normed(hidden, norm)).contiguous()
            self._rotate_and_place(kv.shape, step.address, heads.data_ptr(), *places)
        return q

    def attention(self, q: Tensor, kv: KVCache, layer: int, step: Step | NativeStep) -> Tensor:
        if not isinstance(step, NativeStep):
            return super().attention(q, kv, layer, step)
        assert isinstance(kv, NativeKV)
        out = torch.empty_like(q)
        pages = kv.keys[layer].data_ptr(), kv.values[layer].data_ptr()
        self._attention(kv.shape, step.address, q.data_ptr(), *pages, out.data_ptr())
        return out

    def linear_add(self, x: Tensor, weight: Linear, residual: Tensor) -> Tensor:
        assert isinstance(weight, TorchLinear)
        if self.split or not weight.native:
            return super().linear_add(x, weight, residual)
        self._linear_add(weight.native, self._bfloat16, x.data_ptr(), len(x), residual.data_ptr())
        return residual

    def gate_up(self, hidden: Tensor, norm: Norm, weight: Linear) -> Tensor:
        assert isinstance(weight, TorchLinear)
        tokens, width = len(hidden), weight.out_features // 2
        out = torch.empty((tokens, width), dtype=hidden.dtype)
        if weight.native:
            around = hidden.data_ptr(), norm.weight.data_ptr(), norm.eps
            self._linear_gate_up(weight.native, self._bfloat16, *around, tokens, out.data_ptr())
        else:
            both = weight(self._normed(hidden, norm)).contiguous()
            self._silu_times(self._bfloat16, both.data_ptr(), tokens, width, out.data_ptr())
        return out

    def logits(self, hidden: Tensor, norm: Norm, head: Linear, step: Step | NativeStep) -> Tensor:
        assert isinstance(head, TorchLinear)
        if not head.native or not step.num_logits:
            return super().logits(hidden, norm, head, step)  # type: ignore[arg-type]
        if step.logit_rows is not None:
            hidden = hidden.index_select(0, step.logit_rows)
        rows = few_sizes(len(hidden))  # of other sizes at every step they would leave the heap in pieces
        out = torch.empty((rows, head.out_features), dtype=torch.float32)[: len(hidden)]
        around = hidden.data_ptr(), norm.weight.data_ptr(), norm.eps
        self._linear_logits(head.native, self._bfloat16, *around, len(hidden), out.data_ptr())
        return self.gathered(out)

    def argmax(self, array: Tensor) -> Tensor:
        array = array.contiguous()
        places = torch.empty(len(array), dtype=torch.int64)
        self._largest_places(array.data_ptr(), *array.shape, places.data_ptr())
        return places

    def _normed(self, hidden: Tensor, norm: Norm) -> Tensor:
        if not self._bfloat16:
            return norm(hidden)  # as near to the exact value, but rounded as transformers rounds it
        out = torch.empty_like(hidden)
        sizes = hidden.shape[0], hidden.shape[1]
        self._rms_norm(self._bfloat16, hidden.data_ptr(), norm.weight.data_ptr(), norm.eps, *sizes, out.data_ptr())
        return out
