"""The torch backend on CUDA: steps of fixed shapes, and operations as fused Triton kernels.

A few tokens take five kernels a layer: see ``few_rows``. More of them are multiplied by cuBLAS, with fused kernels between.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from core.compute.torch_backend.attention import PagedKV
from core.compute.torch_backend.backend import Norm, TorchBackend
from core.compute.torch_backend.fp8 import BlockFp8Linear
from core.compute.torch_backend.fp8_codes import BLOCK
from core.compute.torch_backend.linear import DenseLinear, QuantizedKernel, Target, TorchLinear
from core.compute.torch_backend.triton import few_rows, tables
from core.compute.torch_backend.triton.attention import Attention, queries_in_tile
from core.compute.torch_backend.triton.eight import block_tile, by_block
from core.compute.torch_backend.triton.gate import gated
from core.compute.torch_backend.triton.likeliest import Likeliest
from core.compute.torch_backend.triton.norm import normed
from core.compute.torch_backend.triton.packed import Reading, TiledLinear, plain_tile, readable
from core.compute.torch_backend.triton.rope import rotate_and_write
from core.compute.torch_backend.triton.segmented import SegmentedAttention
from core.compute.torch_backend.triton.static import TritonStaticStep, follow
from core.compute.torch_backend.triton.step import Step, upload
from core.compute.torch_backend.triton.tables import Device, fixed_tiling
from core.compute.torch_backend.triton.tiling import Table, Tiling, division, tiling
from core.errors import UserError
from core.interfaces.compute import DType, KVCache, Layer, Linear, SamplingArrays, StepBatch
from core.interfaces.graph import StepShape
from core.interfaces.model import DecoderSpec, Role
from core.interfaces.quantizer import Packed, Quantizer
from core.interfaces.tuning import Tuned, Tuning

INTERPRETED_PROGRAMS = 16  # what a CPU is taken to have room for, when Triton's interpreter stands in for a device


class RowMajor(Target):
    """Weights stay [out, in], as kernels read them: also on the CPU of the interpreter, where oneDNN would pack them."""

    @property
    def packs(self) -> bool:
        return False

    def kernel_of(self, quantizer: Quantizer) -> QuantizedKernel | None:
        tile = quantizer.tile()
        if tile is None:
            return super().kernel_of(quantizer)

        def read_packed(role: Role, packed: Packed, target: Target) -> TorchLinear | None:
            return TiledLinear(role, packed, target, tile, quantizer.name) if readable(packed) else None

        return read_packed


class TritonBackend(TorchBackend):
    """A decode step is a pure function of its ``Step``'s buffer, the weights and the pages: it may be recorded and replayed."""

    def __init__(
        self,
        device: str,
        dtype: DType,
        threads: int = 0,
        overlap: bool = False,
        *,
        deterministic: bool = False,
        table: Table | None = None,
    ) -> None:
        """``overlap``: a kernel's programs are placed, and what no kernel of a step writes is fetched, while the kernel before
        ends. ``deterministic``: what comes of a token does not depend on the step it is computed in. ``table``: how kernels are
        divided; None is what is shipped.
        """
        super().__init__(device, dtype, threads, deterministic=deterministic)
        self._target = RowMajor(self._target.device, self._target.dtype)
        self.table = table or tables.shipped()
        self._likeliest = Likeliest(self._target.device, overlap)
        self._overlap = overlap
        self._attention = self._divided_attention()

    def _divided_attention(self) -> Attention | SegmentedAttention:
        processors = self._processors()
        if self._deterministic:
            return SegmentedAttention(self._target.device, 2 * processors)
        return Attention(self._target.device, processors, self._overlap, partial(division, self.table))

    def divided_by(self, table: Table) -> TritonBackend:
        """The same backend with another table."""
        other = copy.copy(self)
        other.table = table
        other._attention = other._divided_attention()
        return other

    def tune(self, spec: DecoderSpec, layers: Sequence[Layer], norm: Norm, head: Linear, wanted: Tuning) -> Tuned:
        from core.compute.torch_backend.triton.tuning import Tuner

        if self._deterministic:
            what = "deterministic steps divide their kernels in one way for every number of tokens: there is nothing to tune"
            raise UserError.of(what, "backend_torch.deterministic", "leave out --deterministic")
        assert isinstance(head, TorchLinear)
        return Tuner(self, self._target, spec, layers, norm, head, wanted, self._overlap).tuned()

    def _processors(self) -> int:
        if self._target.device.type != "cuda":
            return INTERPRETED_PROGRAMS
        return torch.cuda.get_device_properties(self._target.device).multi_processor_count

    def _row_by_row(self, linear: TorchLinear) -> bool:
        return reading_of(linear) is not None and not isinstance(linear, BlockFp8Linear)

    def upload(self, batch: StepBatch, spec: DecoderSpec, kv: KVCache) -> Step:  # type: ignore[override]
        return upload(batch, queries_in_tile(spec, self._target.dtype), self._target.device)

    def follow(self, step: Step, tokens: Tensor) -> None:  # type: ignore[override]
        follow(step, tokens)

    def sampling(self, step: Step) -> SamplingArrays | None:
        return step.sampling if step.num_logits else None

    def static_step(self, shape: StepShape, spec: DecoderSpec, kv: KVCache) -> TritonStaticStep | None:
        pages = min(kv.num_pages, -(-spec.max_positions // kv.page_size))
        return TritonStaticStep(shape, pages, kv.page_size, queries_in_tile(spec, self._target.dtype), self._target.device)

    def qkv(self, hidden: Tensor, norm: Norm, weight: Linear, kv: KVCache, layer: int, step: Step) -> Tensor:  # type: ignore[override]
        assert isinstance(weight, TorchLinear)
        assert isinstance(kv, PagedKV)
        few = self._tiles(weight, len(hidden))
        if few is not None:
            return few_rows.qkv(hidden, norm.weight, norm.eps, few[0], kv, layer, step, few[1])
        return rotate_and_write(weight(normed(hidden, norm.weight, norm.eps)), kv, layer, step)

    def attention(self, q: Tensor, kv: KVCache, layer: int, step: Step) -> Tensor:  # type: ignore[override]
        assert isinstance(kv, PagedKV)
        return self._attention(q, kv.keys[layer], kv.values[layer], step, kv.spec)

    def linear_add(self, x: Tensor, weight: Linear, residual: Tensor) -> Tensor:
        if self.split:
            return super().linear_add(x, weight, residual)
        few = self._tiles(weight, len(x))
        if few is not None:
            return few_rows.linear_add(x, few[0], residual, few[1])
        if isinstance(weight, DenseLinear):
            return residual.addmm_(x, weight.weight.T)
        return super().linear_add(x, weight, residual)

    def gate_up(self, hidden: Tensor, norm: Norm, weight: Linear) -> Tensor:
        assert isinstance(weight, TorchLinear)
        few = self._tiles(weight, len(hidden))
        if few is not None:
            return few_rows.gate_up(hidden, norm.weight, norm.eps, few[0], few[1])
        return gated(weight(normed(hidden, norm.weight, norm.eps)))

    def logits(self, hidden: Tensor, norm: Norm, head: Linear, step: Step) -> Tensor:  # type: ignore[override]
        few = self._tiles(head, step.num_logits)
        if few is None:
            return super().logits(hidden, norm, head, step)  # type: ignore[arg-type]
        rows = step.logit_rows
        if rows is None and self._deterministic:  # one kernel, whichever rows are wanted
            rows = torch.arange(step.num_logits, dtype=torch.int32, device=hidden.device)
        own = few_rows.logits(hidden, rows, norm.weight, norm.eps, few[0], step.num_logits, few[1])
        return self.gathered(own)

    def argmax(self, array: Tensor) -> Tensor:
        return self._likeliest(array) if self._likeliest.takes(array) else super().argmax(array)

    def _tiles(self, linear: Linear, tokens: int) -> tuple[Reading, Tiling] | None:
        """How to read the weight and to divide it, where there are kernels for this linear and so few tokens."""
        reading = reading_of(linear)
        if reading is None or not tokens:
            return None
        if self._deterministic:
            return reading, fixed_tiling(linear.role, linear.in_features, self._target.dtype.itemsize)
        way = tiling(self.table, linear.role, tokens, linear.in_features, format_of(linear), self._target.dtype.itemsize)
        return None if way is None else (reading, way if self._overlap else replace(way, overlap=False))


def this_device(device: torch.device) -> Device:
    """The interpreter's has no capability."""
    version = tables.triton_of(triton.__version__)
    if device.type != "cuda":
        return Device("Triton's interpreter", "0.0", version)
    capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
    return Device(torch.cuda.get_device_name(device), capability, version)


def format_of(linear: Linear) -> str:
    """As tables know it."""
    if isinstance(linear, BlockFp8Linear):
        return "fp8"
    if isinstance(linear, TiledLinear):
        return "4" if 8 * linear.nbytes < 6 * linear.out_features * linear.in_features else "8"
    return "16"


def reading_of(linear: Linear) -> Reading | None:
    if isinstance(linear, TiledLinear):
        return linear.reading
    shape = (linear.out_features, linear.in_features)
    if isinstance(linear, BlockFp8Linear):
        return Reading(linear.codes, linear.scale, shape, block_tile, BLOCK, by_block)
    return Reading(linear.weight, linear.weight, shape, plain_tile) if isinstance(linear, DenseLinear) else None
