"""What the limits keep, from the whole row sorted in float64: for the few draws that less cannot judge."""

from __future__ import annotations

import torch
from torch import Tensor

from sampler_rejection.limits import Limits


def kept_ranks(logits: Tensor, largest: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
    """The tokens, likeliest first and equals by their ids [R, V], and how many of them are kept [R, 1]."""
    values, ids = torch.sort(logits, dim=-1, descending=True, stable=True)
    weights = values.double().sub_(largest).div_(limits.temperature).exp_()
    sums = weights.cumsum(-1)
    mass = sums.gather(1, limits.top_k - 1)
    by_p = torch.where(limits.top_p < 1.0, (sums < limits.top_p * mass).sum(-1, keepdim=True) + 1, limits.top_k)
    by_min = (weights >= limits.min_p).sum(-1, keepdim=True)
    return ids, torch.minimum(torch.minimum(limits.top_k, by_p), by_min).clamp_(min=1)


def settle(logits: Tensor, largest: Tensor, limits: Limits, drawn: Tensor, share: Tensor) -> Tensor:
    """The drawn tokens [R, 1] that are kept, and for the others one drawn anew from all that are, by ``share`` [R, 1]."""
    ids, kept = kept_ranks(logits, largest, limits)
    ranks = torch.arange(logits.shape[1], device=logits.device).expand_as(ids)
    allowed = torch.zeros_like(ids, dtype=torch.bool).scatter_(1, ids, ranks < kept)
    weights = logits.double().sub_(largest).div_(limits.temperature).exp_().masked_fill_(~allowed, 0.0)
    sums = weights.cumsum(-1)
    anew = torch.searchsorted(sums, share * sums[:, -1:], right=True).clamp_(max=logits.shape[1] - 1)
    return torch.where(allowed.gather(1, drawn), drawn, anew)
