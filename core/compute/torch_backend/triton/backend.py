"""The torch backend on CUDA: steps of fixed shapes, and operations as fused Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from core.compute.torch_backend.attention import PagedKV
from core.compute.torch_backend.backend import Norm, TorchBackend
from core.compute.torch_backend.linear import Target, TorchLinear
from core.compute.torch_backend.triton.attention import Attention, queries_in_tile
from core.compute.torch_backend.triton.rope import rotate_and_write
from core.compute.torch_backend.triton.static import TritonStaticStep
from core.compute.torch_backend.triton.step import Step, upload
from core.interfaces.compute import DType, KVCache, Linear, StepBatch
from core.interfaces.graph import StepShape
from core.interfaces.model import DecoderSpec

INTERPRETED_PROGRAMS = 16  # what a CPU is taken to have room for, when Triton's interpreter stands in for a device


class RowMajor(Target):
    """Weights stay [out, in], as kernels read them: also on the CPU of the interpreter, where oneDNN would pack them."""

    @property
    def packs(self) -> bool:
        return False


class TritonBackend(TorchBackend):
    """A decode step is a pure function of its ``Step``'s buffer, the weights and the pages: it may be recorded and replayed."""

    def __init__(self, device: str, dtype: DType, threads: int = 0) -> None:
        super().__init__(device, dtype, threads)
        self._target = RowMajor(self._target.device, self._target.dtype)
        self._attention = Attention(self._target.device, 2 * self._processors())

    def _processors(self) -> int:
        if self._target.device.type != "cuda":
            return INTERPRETED_PROGRAMS
        return torch.cuda.get_device_properties(self._target.device).multi_processor_count

    def upload(self, batch: StepBatch, spec: DecoderSpec, kv: KVCache) -> Step:  # type: ignore[override]
        return upload(batch, queries_in_tile(spec, self._target.dtype), self._target.device)

    def static_step(self, shape: StepShape, spec: DecoderSpec, kv: KVCache) -> TritonStaticStep | None:
        if shape.kind == "mixed":
            return None
        pages = min(kv.num_pages, -(-spec.max_positions // kv.page_size))
        return TritonStaticStep(shape, pages, queries_in_tile(spec, self._target.dtype), self._target.device)

    def qkv(self, hidden: Tensor, norm: Norm, weight: Linear, kv: KVCache, layer: int, step: Step) -> Tensor:  # type: ignore[override]
        assert isinstance(weight, TorchLinear)
        assert isinstance(kv, PagedKV)
        return rotate_and_write(weight(norm(hidden)), kv, layer, step)

    def attention(self, q: Tensor, kv: KVCache, layer: int, step: Step) -> Tensor:  # type: ignore[override]
        assert isinstance(kv, PagedKV)
        return self._attention(q, kv.keys[layer], kv.values[layer], step, kv.spec)
