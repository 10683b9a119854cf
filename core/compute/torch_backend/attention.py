"""The paged KV cache and attention over it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from core.compute.torch_backend import rope
from core.compute.torch_backend.host_pages import PagesOfCpu, PagesOfCuda
from core.compute.torch_backend.step import Masks, Reading, Step
from core.interfaces.compute import HostPages, KVCache
from core.interfaces.model import DecoderSpec


class PagedKV(KVCache):
    """Keys and values, each [pages, page, kv_heads, head_dim] a layer; and what depends on the decoder's shape alone."""

    def __init__(
        self,
        spec: DecoderSpec,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
        held: tuple[torch.dtype, int] | None = None,
    ) -> None:
        """``held``: in what a head is held, and in how many of it, where that is not ``head_dim`` of ``dtype``."""
        self.num_pages = num_pages
        self.page_size = page_size
        self.spec = spec
        kind, width = held or (dtype, spec.head_dim)
        memory = _zeros((spec.num_layers, 2, num_pages, page_size, spec.num_kv_heads, width), kind, device)
        self.nbytes = memory.nbytes
        self._memory = memory
        self.keys = [memory[layer, 0] for layer in range(spec.num_layers)]
        self.values = [memory[layer, 1] for layer in range(spec.num_layers)]
        # No sequence is longer than the whole cache.
        self.turns = rope.table(spec, min(spec.max_positions, num_pages * page_size), device)
        self.masks = Masks(spec.num_heads // spec.num_kv_heads, dtype, device)

    def host_pages(self, number: int) -> HostPages:
        if self._memory.device.type == "cpu":
            return PagesOfCpu(self._memory, number)
        return PagesOfCuda(self._memory, number)

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """keys, values [T, kv_heads, head_dim] into their slots."""
        if keys.dtype == torch.float16:
            # What overflowed stays in a page when its request has gone, and a masked infinity is still a NaN.
            keys, values = torch.nan_to_num(keys, 0.0, 0.0, 0.0), torch.nan_to_num(values, 0.0, 0.0, 0.0)
        self.keys[layer].flatten(0, 1).index_copy_(0, slots, keys)
        self.values[layer].flatten(0, 1).index_copy_(0, slots, values)

    def attend(self, layer: int, q: Tensor, step: Step) -> Tensor:
        """q [T, heads, head_dim] -> [T, q_width]."""
        readings = step.readings
        if len(readings) == 1 and readings[0].sequences * readings[0].queries == len(q):
            return self._read(layer, q, readings[0]).reshape(len(q), -1)
        out = torch.empty((len(q), self.spec.q_width), dtype=q.dtype, device=q.device)
        for reading in readings:
            rows = reading.rows
            mixed = self._read(layer, q[rows], reading)
            if isinstance(rows, slice):
                out[rows].view(mixed.shape).copy_(mixed)
            else:
                out.index_copy_(0, rows, mixed.reshape(len(rows), -1))
        return out

    def _read(self, layer: int, q: Tensor, reading: Reading) -> Tensor:
        """[sequences, queries, kv_heads, heads / kv_heads, head_dim].

        Heads that share keys become further queries of one head: no key is repeated, and kernels have more rows to work on.
        """
        sequences, queries, kv_heads = reading.sequences, reading.queries, self.spec.num_kv_heads
        group, width = self.spec.num_heads // kv_heads, self.spec.head_dim
        q = q.reshape(sequences, queries, kv_heads, group, width).transpose(1, 2)
        q = q.reshape(sequences, kv_heads, queries * group, width)
        keys, values = (self._gather(cache[layer], reading) for cache in (self.keys, self.values))
        mixed = functional.scaled_dot_product_attention(q, keys, values, attn_mask=reading.mask)
        return mixed.view(sequences, kv_heads, queries, group, width).transpose(1, 2)

    def _gather(self, cache: Tensor, reading: Reading) -> Tensor:
        """[sequences, kv_heads, keys, head_dim]"""
        pages = cache.flatten(1).index_select(0, reading.pages)
        return pages.view(reading.sequences, -1, cache.shape[2], cache.shape[3])[:, : reading.keys].transpose(1, 2)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros, since unused slots are read too, if only to be masked. On a CPU a page costs memory only once it is written to."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros((*shape[:-1], shape[-1] * dtype.itemsize), dtype=np.uint8)).view(dtype)
