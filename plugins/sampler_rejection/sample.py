"""The sampler: greedy rows apart, the others drawn by the kernel on a CUDA device and by plain torch elsewhere."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.interfaces.compute import SamplingRows
from core.interfaces.sampler import Draw, Sampler
from sampler_rejection.limits import Limits
from sampler_rejection.pivots import draw


class RejectionSampler(Sampler):
    def __init__(self) -> None:
        self._has_triton = find_spec("triton") is not None

    def sample(self, logits: Tensor, rows: SamplingRows) -> Tensor:
        if logits.is_cuda and self._has_triton:
            from sampler_rejection.kernel import on_device
            from sampler_rejection.parts import draw as draw_on_device

            return draw_on_device(logits, on_device(rows, logits.device))
        tokens = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
        greedy = rows.temperature <= 0.0
        if greedy.any():
            index = torch.from_numpy(np.flatnonzero(greedy)).to(logits.device)
            tokens[index] = logits[index].argmax(-1)
        vocab = logits.shape[1]
        has_top_k = (rows.top_k > 0) & (rows.top_k < vocab)
        for which in (np.flatnonzero(~greedy & has_top_k), np.flatnonzero(~greedy & ~has_top_k)):
            if len(which):
                own = slice(None) if len(which) == len(rows) else torch.from_numpy(which).to(logits.device)
                tokens[own] = drawn_or_largest(logits[own], Limits.of(rows, which, vocab, logits.device))
        return tokens

    def on_device(self, device: Any) -> Draw | None:
        if not self._has_triton or not str(device).startswith("cuda"):
            return None
        from sampler_rejection.parts import draw as draw_on_device

        return draw_on_device

    def warm(self, vocab: int, device: Any) -> None:
        """Compile the kernel."""
        if str(device).startswith("cuda"):
            one = np.ones(1, np.float32)
            off = np.zeros(1, np.int32)
            rows = SamplingRows(one, off, one, one - 1, off.astype(np.uint64), off.astype(np.int64), off - 1)
            self.sample(torch.zeros(1, vocab, device=device), rows)


def drawn_or_largest(logits: Tensor, limits: Limits) -> Tensor:
    """The drawn tokens; the largest logit where a row holds NaN, or nothing finite."""
    largest = logits.amax(-1, keepdim=True)
    sound = largest[:, 0].isfinite()
    if bool(sound.all()):
        return draw(logits, largest, limits)
    tokens = logits.argmax(-1)
    if bool(sound.any()):
        which = sound.nonzero()[:, 0]
        tokens[which] = draw(logits[which], largest[which], limits.take(which))
    return tokens
