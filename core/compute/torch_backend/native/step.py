"""What native calls are told once for a KV cache, once for a step: arrays of int64 that C++ reads as structs (src/layer.h)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.compute.torch_backend.attention import PagedKV
from core.compute.torch_backend.eight_bits import SCALE_BYTES
from core.compute.torch_backend.step import to_device
from core.interfaces.compute import StepBatch
from core.interfaces.model import DecoderSpec

CPU = torch.device("cpu")
LANES = 16
WIDEST = 1024  # of a head
FIELDS = 8  # of a step's struct
MOST_QUERY_HEADS = 64  # of a kv head


def refusal(spec: DecoderSpec) -> str | None:
    """Why attention over heads of this shape is left to plain torch."""
    if spec.head_dim % LANES or spec.head_dim > WIDEST:
        return f"heads of {spec.head_dim} are no multiple of {LANES} up to {WIDEST}"
    if spec.num_heads // spec.num_kv_heads > MOST_QUERY_HEADS:
        return f"more than {MOST_QUERY_HEADS} heads share a kv head"
    return None


def in_eight_bits(values: Tensor) -> Tensor:
    """Heads [..., head_dim] as the kernels hold them (src/eight.h): int8 [..., 4 + head_dim], a float32 and multiples of it."""
    values = values.float()
    scale = values.abs().amax(-1, keepdim=True) / 127.0
    inverse = torch.where(scale > 0.0, 1.0 / scale, 0.0)
    return torch.cat([scale.view(torch.int8), (values * inverse).round().to(torch.int8)], -1)


def out_of_eight_bits(held: Tensor) -> Tensor:
    """What heads so held are worth: float32 [..., head_dim]."""
    return held[..., SCALE_BYTES:].float() * held[..., :SCALE_BYTES].contiguous().view(torch.float32)


class NativeKV(PagedKV):
    def __init__(
        self,
        spec: DecoderSpec,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
        whole: bool = False,
        eight: bool = False,
    ) -> None:
        """``whole``: a query's keys are never parted among tasks. ``eight``: keys and values are held in eight bits."""
        held = (torch.int8, spec.head_dim + SCALE_BYTES) if eight else None
        super().__init__(spec, num_pages, page_size, dtype, CPU, held)
        self.eight = eight
        self._turns = self.turns.real.contiguous(), self.turns.imag.contiguous()
        self._fields = np.array(
            [
                dtype == torch.bfloat16,
                spec.num_heads,
                spec.num_kv_heads,
                spec.head_dim,
                page_size,
                spec.rope_style == "interleaved",
                *(turns.data_ptr() for turns in self._turns),
                eight,
                whole,
            ],
            np.int64,
        )
        self.shape = self._fields.ctypes.data
        self._places = np.array([[each.data_ptr() for each in pages] for pages in (self.keys, self.values)], np.int64)
        self.key_places, self.value_places = (places.ctypes.data for places in self._places)

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        if self.eight:
            keys, values = in_eight_bits(keys), in_eight_bits(values)
        super().write(layer, slots, keys, values)


@dataclass(frozen=True, slots=True)
class NativeStep:
    token_ids: Tensor  # [T]
    logit_rows: Tensor | None  # None: every token's, in order
    num_logits: int
    tokens: int
    address: int
    held: tuple[NDArray[np.generic], ...]  # whose memory is at that address, or is pointed to from there


def upload(batch: StepBatch) -> NativeStep:
    rows, tokens, sequences = batch.logit_rows, batch.num_tokens, batch.num_sequences
    parts = batch.positions, batch.query_starts, batch.context_lens, batch.page_table.reshape(-1)
    numbers = np.concatenate(parts, dtype=np.int32)
    words = np.empty(FIELDS + tokens, np.int64)
    address, first = words.ctypes.data, numbers.ctypes.data
    starts = first + 4 * tokens
    lengths = starts + 4 * (sequences + 1)
    pages = lengths + 4 * sequences, batch.page_table.shape[1]
    words[:FIELDS] = tokens, sequences, first, address + 8 * FIELDS, starts, lengths, *pages
    words[FIELDS:] = batch.slots
    every = len(rows) == tokens and bool((rows == np.arange(tokens)).all())
    return NativeStep(
        token_ids=to_device(batch.token_ids, CPU),
        logit_rows=None if every else to_device(rows, CPU),
        num_logits=len(rows),
        tokens=tokens,
        address=address,
        held=(words, numbers),
    )
