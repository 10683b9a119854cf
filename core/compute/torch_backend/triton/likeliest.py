# ruff: noqa: ANN001, ANN202, N803 - a kernel's arguments are pointers and scalars of Triton, its constants are in capitals
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,misc"
"""The likeliest token of each row of logits: a row is divided among programs, whichever ends last compares what they found."""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from core.compute.torch_backend.triton.arithmetic import await_kernel_before, let_kernel_behind_start

WIDTH = 4096  # logits of a part
ARRIVALS = 1 << 14  # counters: a row takes one


class Likeliest:
    def __init__(self, device: torch.device, overlap: bool = False) -> None:
        self._overlap = overlap
        self._arrivals = torch.zeros(ARRIVALS, dtype=torch.int32, device=device)  # zero again after each launch

    def takes(self, logits: Tensor) -> bool:
        return logits.dim() == 2 and logits.dtype == torch.float32 and logits.stride(1) == 1 and 0 < len(logits) <= ARRIVALS

    def __call__(self, logits: Tensor) -> Tensor:
        """float32 [R, V] -> int64 [R]; of equals the first, and a NaN before all else, as plain torch has it."""
        rows, vocab = logits.shape
        parts = -(-vocab // WIDTH)
        tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
        found = torch.empty((rows, parts), dtype=torch.int64, device=logits.device)
        _likeliest[(parts, rows)](
            logits, logits.stride(0), found, self._arrivals, tokens,
            VOCAB=vocab, WIDTH=WIDTH, PARTS=parts, BLOCK=triton.next_power_of_2(parts), OVERLAP=self._overlap,
            num_warps=4, launch_pdl=self._overlap,
        )  # fmt: skip
        return tokens


@triton.jit
def _likeliest(logits, stride, found, arrivals, tokens, VOCAB: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr,
               BLOCK: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """What a part has found is one number: the logit as an integer that sorts alike, behind it the lower id as the greater."""
    let_kernel_behind_start(OVERLAP)
    part = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    ids = part * WIDTH + tl.arange(0, WIDTH)
    await_kernel_before(OVERLAP)
    x = tl.load(logits + row * stride + ids, mask=ids < VOCAB, other=float("-inf"))
    is_nan = x != x
    nan = tl.min(tl.where(is_nan, ids, VOCAB), 0)
    x = tl.where(is_nan, float("-inf"), x)
    best = tl.max(x, 0)
    place = tl.min(tl.where(x == best, ids, VOCAB), 0)
    bits = tl.where(best == 0.0, 0.0, best).to(tl.int32, bitcast=True)  # -0 equals 0
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    key = tl.where(nan < VOCAB, 0x7FFFFFFF, key)
    place = tl.where(nan < VOCAB, nan, place)
    own = (key.to(tl.int64) << 32) | (0x7FFFFFFF - place).to(tl.int64)
    tl.store(found + row * PARTS + part, own, cache_modifier=".cg")
    tl.debug_barrier()  # what is stored goes before the arrival
    if tl.atomic_add(arrivals + row, 1, sem="acq_rel", scope="gpu") == PARTS - 1:
        parts = tl.arange(0, BLOCK)
        of_parts = tl.load(found + row * PARTS + parts, mask=parts < PARTS, other=-(2**63), cache_modifier=".cg")
        most = tl.max(of_parts, 0)
        tl.store(tokens + row, 0x7FFFFFFF - (most & 0xFFFFFFFF))
        tl.store(arrivals + row, 0)
