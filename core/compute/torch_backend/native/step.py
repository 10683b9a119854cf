"""What native calls are told once for a KV cache, once for a step: arrays of int64 that C++ reads as structs (src/layer.h)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.compute.torch_backend.attention import PagedKV
from core.compute.torch_backend.step import to_device
from core.interfaces.compute import StepBatch
from core.interfaces.model import DecoderSpec

CPU = torch.device("cpu")
LANES = 16
WIDEST = 1024  # of a head
MOST_QUERY_HEADS = 64  # of a kv head


def refusal(spec: DecoderSpec) -> str | None:
    """Why attention over heads of this shape is left to plain torch."""
    if spec.head_dim % LANES or spec.head_dim > WIDEST:
        return f"heads of {spec.head_dim} are no multiple of {LANES} up to {WIDEST}"
    if spec.num_heads // spec.num_kv_heads > MOST_QUERY_HEADS:
        return f"more than {MOST_QUERY_HEADS} heads share a kv head"
    return None


class NativeKV(PagedKV):
    def __init__(self, spec: DecoderSpec, num_pages: int, page_size: int, dtype: torch.dtype) -> None:
        super().__init__(spec, num_pages, page_size, dtype, CPU)
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
            ],
            np.int64,
        )
        self.shape = self._fields.ctypes.data
        self.key_addresses = [keys.data_ptr() for keys in self.keys]
        self.value_addresses = [values.data_ptr() for values in self.values]


@dataclass(frozen=True, slots=True)
class NativeStep:
    token_ids: Tensor  # [T]
    logit_rows: Tensor | None  # None: every token's, in order
    num_logits: int
    tokens: int
    address: int
    held: tuple[NDArray[np.generic], ...]  # whose memory is at that address, or is pointed to from there


def upload(batch: StepBatch) -> NativeStep:
    rows, tokens = batch.logit_rows, batch.num_tokens
    arrays = tuple(
        np.ascontiguousarray(array, dtype)
        for array, dtype in (
            (batch.positions, np.int32),
            (batch.slots, np.int64),
            (batch.query_starts, np.int32),
            (batch.context_lens, np.int32),
            (batch.page_table, np.int32),
        )
    )
    addresses = [array.ctypes.data for array in arrays]
    fields = np.array([tokens, batch.num_sequences, *addresses, arrays[-1].shape[1]], np.int64)
    every = len(rows) == tokens and np.array_equal(rows, np.arange(tokens))
    return NativeStep(
        token_ids=to_device(batch.token_ids, CPU),
        logit_rows=None if every else to_device(rows, CPU),
        num_logits=len(rows),
        tokens=tokens,
        address=fields.ctypes.data,
        held=(fields, *arrays),
    )
