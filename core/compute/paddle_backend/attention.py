"""The paged KV cache and attention over it."""

from __future__ import annotations

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import Tensor

from core.compute.paddle_backend import rope
from core.compute.paddle_backend.host_pages import PagesOfCpu, PagesOfCuda
from core.compute.paddle_backend.machine import Place, adopted
from core.compute.paddle_backend.step import Masks, Reading, Step
from core.interfaces.compute import DTYPE_BYTES, DType, HostPages, KVCache
from core.interfaces.model import DecoderSpec


class PagedKV(KVCache):
    """Keys and values, each [pages, page, kv_heads, head_dim] a layer; and what depends on the decoder's shape alone."""

    def __init__(self, spec: DecoderSpec, num_pages: int, page_size: int, dtype: DType, place: Place) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.spec = spec
        shape = (spec.num_layers, 2, num_pages, page_size, spec.num_kv_heads, spec.head_dim)
        self.nbytes = int(np.prod(shape)) * DTYPE_BYTES[dtype]
        # Zeros, since unused slots are read too, if only to be masked. numpy's cost memory only once they are written to.
        self._host: NDArray[np.float32] | None = np.zeros(shape, np.float32) if isinstance(place, paddle.CPUPlace) else None
        self._memory = paddle.zeros(shape, dtype) if self._host is None else adopted(self._host, place)
        self.keys = [self._memory[layer, 0] for layer in range(spec.num_layers)]  # views
        self.values = [self._memory[layer, 1] for layer in range(spec.num_layers)]
        # No sequence is longer than the whole cache.
        self.turns = rope.table(spec, min(spec.max_positions, num_pages * page_size), place)
        self.masks = Masks(spec.num_heads // spec.num_kv_heads, spec.num_kv_heads, place)

    def host_pages(self, number: int) -> HostPages:
        return PagesOfCuda(self._memory, number) if self._host is None else PagesOfCpu(self._host, number)

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """keys, values [T, kv_heads, head_dim] into their slots."""
        paddle.scatter_(self.keys[layer].flatten(0, 1), slots, keys)
        paddle.scatter_(self.values[layer].flatten(0, 1), slots, values)

    def attend(self, layer: int, q: Tensor, step: Step) -> Tensor:
        """q [T, heads, head_dim] -> [T, q_width]."""
        readings = step.readings
        if len(readings) == 1 and readings[0].sequences * readings[0].queries == len(q):
            return self._read(layer, q, readings[0])
        out = paddle.empty([len(q), self.spec.q_width], q.dtype)
        for reading in readings:
            out[reading.rows] = self._read(layer, q[reading.rows], reading)
        return out

    def _read(self, layer: int, q: Tensor, reading: Reading) -> Tensor:
        """[sequences * queries, q_width]. Heads that share keys become further queries of one head: no key is repeated."""
        sequences, queries, kv_heads = reading.sequences, reading.queries, self.spec.num_kv_heads
        width = self.spec.head_dim
        order, back = self.masks.orders(queries) if queries > 1 else (None, None)
        if order is not None:
            q = paddle.index_select(q.flatten(0, 1), order)
        q = q.reshape([sequences, kv_heads, -1, width])
        keys, values = (self._gather(cache[layer], reading) for cache in (self.keys, self.values))
        scores = paddle.matmul(q * width**-0.5, keys, transpose_y=True).cast("float32")
        if reading.mask is not None:
            scores = scores + reading.mask
        mixed = paddle.matmul(paddle.nn.functional.softmax(scores, -1).cast(q.dtype), values)
        if back is not None:
            mixed = paddle.index_select(mixed.reshape([-1, width]), back)
        return mixed.reshape([sequences * queries, self.spec.q_width])

    def _gather(self, cache: Tensor, reading: Reading) -> Tensor:
        """[sequences, kv_heads, keys, head_dim]"""
        rows = paddle.index_select(cache.flatten(0, 2), reading.rows_of_keys)
        return rows.reshape([reading.sequences, self.spec.num_kv_heads, reading.keys, self.spec.head_dim])
