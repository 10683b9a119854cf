"""The decoder's operations in numpy: float32 on a CPU."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from backend_numpy import logits
from backend_numpy.attention import Floats, PagedKV, Step, attend, rotate, upload
from core.compute import parts, room
from core.host import free_and_total_memory
from core.interfaces.compute import ComputeBackend, KVCache, Linear, LogitAdjustment, StepBatch
from core.interfaces.model import DecoderSpec, Role, Weight
from core.interfaces.quantizer import Quantizer


class NumpyLinear(Linear):
    def __init__(self, role: Role, matrix: Floats) -> None:
        """``matrix``: [out, in]."""
        super().__init__(role, matrix.shape, matrix.nbytes, "float32")
        self.matrix = matrix

    def __call__(self, x: Floats) -> Floats:
        return x @ self.matrix.T


class Norm(NamedTuple):
    weight: Floats
    eps: float

    def __call__(self, hidden: Floats) -> Floats:
        wide = hidden.astype(np.float64)
        normed = wide / np.sqrt((wide * wide).mean(axis=-1, keepdims=True) + self.eps) * self.weight
        out: Floats = normed.astype(np.float32)
        return out


class NumpyBackend(ComputeBackend):
    framework = "numpy"
    device = "cpu"
    dtype = "float32"

    def __init__(self, threads: int) -> None:
        """``threads``: of numpy's matrix products; everything else takes one."""
        self._limits = threadpool_limits(threads, user_api="blas")
        self._embedding: Floats | None = None  # until the head has been placed, which may be the same

    # --- memory -----------------------------------------------------------------------------------------------------

    def place(self, weight: Weight, spec: DecoderSpec, quantizer: Quantizer | None) -> Any:
        role = weight.name.role
        if weight.packed is not None or (quantizer is not None and role in quantizer.roles):
            raise NotImplementedError(f"{weight.name} is to be packed: the plugin's rule should have refused it")
        if role == "head" and weight.tied and self._embedding is not None:
            table, self._embedding = self._embedding, None
            return NumpyLinear(role, table)
        array = np.empty(spec.shape(role), np.float32)
        for rows, part in parts.dense(weight):
            array[rows] = part
        if role == "norm":
            return Norm(array, spec.norm_eps)
        if role == "embed":
            self._embedding = array if spec.tied_head else None
            return array
        return NumpyLinear(role, array)

    def kv_cache(self, spec: DecoderSpec, num_pages: int, page_size: int) -> PagedKV:
        free, _ = self.memory()
        room.for_pages(spec, self.dtype, num_pages, page_size, free, self.device)
        return PagedKV(spec, num_pages, page_size)

    def memory(self) -> tuple[int, int]:
        return free_and_total_memory()

    # --- one step ---------------------------------------------------------------------------------------------------

    def upload(self, batch: StepBatch, spec: DecoderSpec, kv: KVCache) -> Step:
        assert isinstance(kv, PagedKV)
        return upload(batch, kv)

    def embed(self, table: Floats, step: Step) -> Floats:
        return table[step.token_ids]

    def qkv(self, hidden: Floats, norm: Norm, weight: Linear, kv: KVCache, layer: int, step: Step) -> Floats:
        assert isinstance(weight, NumpyLinear)
        assert isinstance(kv, PagedKV)
        spec = kv.spec
        heads = weight(norm(hidden)).reshape(len(hidden), -1, spec.head_dim)
        turning = spec.num_heads + spec.num_kv_heads  # q and k; v lies behind them
        turned = rotate(heads[:, :turning], step.turns, spec)
        kv.slots[layer, 0, step.slots] = turned[:, spec.num_heads :]
        kv.slots[layer, 1, step.slots] = heads[:, turning:]
        return turned[:, : spec.num_heads].reshape(len(hidden), spec.q_width)

    def attention(self, q: Floats, kv: KVCache, layer: int, step: Step) -> Floats:
        assert isinstance(kv, PagedKV)
        out = np.empty_like(q)
        for reading in step.readings:
            out[reading.rows] = attend(q[reading.rows], kv, layer, reading)
        return out

    def linear_add(self, x: Floats, weight: Linear, residual: Floats) -> Floats:
        assert isinstance(weight, NumpyLinear)
        residual += weight(x)
        return residual

    def gate_up(self, hidden: Floats, norm: Norm, weight: Linear) -> Floats:
        assert isinstance(weight, NumpyLinear)
        gate, up = np.split(weight(norm(hidden)), 2, axis=-1)
        with np.errstate(over="ignore"):  # a gate far below zero is divided by infinity: that is its zero
            opened: Floats = gate / (1 + np.exp(-gate)) * up
        return opened

    def logits(self, hidden: Floats, norm: Norm, head: Linear, step: Step) -> Floats:
        assert isinstance(head, NumpyLinear)
        return head(norm(hidden[step.logit_rows]))

    def adjust(self, array: Floats, adjustment: LogitAdjustment) -> Floats:
        return logits.adjust(array, adjustment)

    def argmax(self, array: Floats) -> NDArray[np.int64]:
        best: NDArray[np.int64] = array.argmax(axis=1)
        return best

    def logprobs(self, array: Floats, token_ids: NDArray[np.int64], most: int) -> tuple[Any, Any, Any, Any]:
        return logits.logprobs(array, token_ids, most)

    def clone(self, array: NDArray[Any]) -> NDArray[Any]:
        return array.copy()

    def to_host(self, array: NDArray[Any]) -> NDArray[Any]:
        return array

    def close(self) -> None:
        self._limits.restore_original_limits()
