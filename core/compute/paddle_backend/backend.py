"""The decoder's operations in PaddlePaddle. One backend is one device and one number format."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import Tensor
from paddle.nn import functional

from core.compute import freed_memory, room
from core.compute.paddle_backend import linear, logits, machine, quantized, rope, step
from core.compute.paddle_backend.attention import PagedKV
from core.compute.paddle_backend.linear import PaddleLinear, Target
from core.compute.paddle_backend.step import Step
from core.host import usable_cores
from core.interfaces.compute import ComputeBackend, DType, KVCache, Linear, LogitAdjustment, StepBatch
from core.interfaces.model import DecoderSpec, Weight
from core.interfaces.quantizer import Quantizer

linear.KERNELS |= quantized.WEIGHT_ONLY


class Norm(NamedTuple):
    """In twice the width of what is normalized: in float32 alone it is a third of all that the demo's logits are off by."""

    weight: Tensor  # [hidden], in that width
    eps: float

    def __call__(self, hidden: Tensor) -> Tensor:
        wide = hidden.cast(self.weight.dtype)
        scale = paddle.rsqrt((wide * wide).mean(-1, keepdim=True) + self.eps)
        return (wide * scale * self.weight).cast(hidden.dtype)


class PaddleBackend(ComputeBackend):
    """Tensors here stop gradients, as those do that Paddle makes of data, so nothing is recorded."""

    framework = "paddle"

    def __init__(self, device: str, dtype: DType, threads: int = 0) -> None:
        """``threads``: of a CPU; 0 is one for each physical core that this process may use."""
        self.device = device
        self.dtype = dtype
        self._target = Target(machine.place_of(device), dtype)
        self._embedding: Tensor | None = None  # until a tied head has been placed
        if device == "cpu":
            machine.use_threads(threads or usable_cores())
            freed_memory.keep()

    # --- memory -----------------------------------------------------------------------------------------------------

    def place(self, weight: Weight, spec: DecoderSpec, quantizer: Quantizer | None) -> Any:
        with machine.memory_for(
            f"the weights of the model, at {weight.name}",
            "take a smaller model",
            "free memory, or use a machine that has more",
        ):
            if weight.name.role == "norm":
                wide = "float64" if self.dtype == "float32" else "float32"
                return Norm(linear.array(weight, spec, self._target).cast(wide), spec.norm_eps)
            if weight.name.role == "embed":
                table = linear.array(weight, spec, self._target)
                self._embedding = table if spec.tied_head else None
                return table
            placed = linear.place(weight, spec, quantizer, self._target, self._embedding)
            if weight.name.role == "head":
                self._embedding = None
            return placed

    def kv_cache(self, spec: DecoderSpec, num_pages: int, page_size: int) -> PagedKV:
        free, _ = self.memory()
        what = room.for_pages(spec, self.dtype, num_pages, page_size, free, self.device)
        with machine.memory_for(what, *room.REMEDIES):
            return PagedKV(spec, num_pages, page_size, self.dtype, self._target.place)

    def memory(self) -> tuple[int, int]:
        return machine.free_and_total(self._target.place)

    # --- one step ---------------------------------------------------------------------------------------------------

    def upload(self, batch: StepBatch, spec: DecoderSpec, kv: KVCache) -> Step:
        assert isinstance(kv, PagedKV)
        return step.upload(batch, kv.page_size, kv.turns, kv.masks)

    def embed(self, table: Tensor, step: Step) -> Tensor:
        return paddle.index_select(table, step.token_ids)

    def qkv(self, hidden: Tensor, norm: Norm, weight: Linear, kv: KVCache, layer: int, step: Step) -> Tensor:
        assert isinstance(weight, PaddleLinear)
        assert isinstance(kv, PagedKV)
        spec = kv.spec
        heads = weight(norm(hidden)).reshape([len(hidden), -1, spec.head_dim])  # q, then k, then v
        turning = spec.num_heads + spec.num_kv_heads
        turned = rope.rotate(heads[:, :turning], step.turns, spec.rope_style)
        kv.write(layer, step.slots, turned[:, spec.num_heads :], heads[:, turning:])
        return turned[:, : spec.num_heads].reshape([len(hidden), spec.q_width])

    def attention(self, q: Tensor, kv: KVCache, layer: int, step: Step) -> Tensor:
        assert isinstance(kv, PagedKV)
        return kv.attend(layer, q.reshape([len(q), kv.spec.num_heads, kv.spec.head_dim]), step)

    def linear_add(self, x: Tensor, weight: Linear, residual: Tensor) -> Tensor:
        assert isinstance(weight, PaddleLinear)
        return residual.add_(weight(x))

    def gate_up(self, hidden: Tensor, norm: Norm, weight: Linear) -> Tensor:
        assert isinstance(weight, PaddleLinear)
        return functional.swiglu(weight(norm(hidden)))

    def logits(self, hidden: Tensor, norm: Norm, head: Linear, step: Step) -> Tensor:
        assert isinstance(head, PaddleLinear)
        if not step.num_logits:
            return paddle.zeros([0, head.out_features])
        if step.logit_rows is not None:
            hidden = paddle.index_select(hidden, step.logit_rows)
        return head.logits(norm(hidden))

    def adjust(self, array: Tensor, adjustment: LogitAdjustment) -> Tensor:
        return logits.adjust(array, adjustment)

    def argmax(self, array: Tensor) -> Tensor:
        return array.argmax(-1)

    def logprobs(
        self, array: Tensor, token_ids: Tensor | NDArray[np.int64], most: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if isinstance(token_ids, np.ndarray):
            token_ids = machine.to_device(token_ids, self._target.place)
        return logits.logprobs(array, token_ids, most)

    def clone(self, array: Tensor) -> Tensor:
        return array.clone()

    def to_host(self, array: Tensor) -> NDArray[Any]:
        host: NDArray[np.generic] = (array.cast("float32") if array.dtype == paddle.bfloat16 else array).numpy()
        return host
