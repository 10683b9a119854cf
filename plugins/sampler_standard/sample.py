"""Exact sampling by inverse CDF: one uniform number a row, and the first token at which the summed weights exceed it.

A row without limits is summed in the order of token ids: in parts of a few hundred, and then within one of them. A row with
limits is summed likeliest first, equal logits in the order of their ids: every limit then keeps a *prefix*, and the shortest
one wins. The likeliest tokens nearly always hold the whole prefix; a row whose prefix is longer is sorted in full. Both ways
give the same tokens in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.interfaces.compute import SamplingRows
from core.interfaces.randomness import uniform
from core.interfaces.sampler import Sampler

CANDIDATES = (256, 4096)  # likeliest tokens looked at, before sorting all
PART = 256  # tokens summed at once where no order among them is wanted
ROWS_AT_ONCE = 16  # on a CPU: of arrays of megabytes, of another size at every step, the heap falls into pieces


@dataclass(frozen=True)
class Limits:
    """The parameters of some rows as float64 columns [R, 1] on the device; ``top_k`` is infinite where it is off."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    uniform: Tensor

    @classmethod
    def of(cls, rows: SamplingRows, which: NDArray[np.int64], logits: Tensor) -> Limits:
        def column(values: NDArray[Any]) -> Tensor:
            return torch.tensor(values.astype(np.float64), device=logits.device)[:, None]

        top_k = rows.top_k[which]
        return cls(
            temperature=column(rows.temperature[which]),
            top_k=column(np.where((top_k > 0) & (top_k < logits.shape[1]), top_k, np.inf)),
            top_p=column(rows.top_p[which]),
            min_p=column(rows.min_p[which]),
            uniform=column(uniform(rows.seeds[which], rows.positions[which])),
        )

    def take(self, which: Tensor) -> Limits:
        return Limits(*(each[which] for each in (self.temperature, self.top_k, self.top_p, self.min_p, self.uniform)))


Draw = Callable[[Tensor, Tensor, Limits], Tensor]
"""Logits [R, V], the largest of each row [R, 1], the rows' limits -> tokens [R]."""


class StandardSampler(Sampler):
    @torch.inference_mode()  # logits made in it are overwritten
    def sample(self, logits: Tensor, rows: SamplingRows) -> Tensor:
        # A sum in another order starts at another token: what excludes nothing must not count as a limit.
        limited = ((rows.top_k > 0) & (rows.top_k < logits.shape[1])) | (rows.top_p < 1.0) | (rows.min_p > 0.0)
        greedy = rows.temperature <= 0.0
        kinds = ((greedy, None), (~greedy & ~limited, draw_any), (~greedy & limited, draw_limited))
        tokens = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
        for chosen, draw in kinds:
            if not chosen.any():
                continue
            which = np.flatnonzero(chosen)
            index = slice(None) if chosen.all() else torch.tensor(which, device=logits.device)
            own = logits[index]
            tokens[index] = own.argmax(-1) if draw is None else drawn(own, draw, Limits.of(rows, which, own))
        return tokens


def drawn(logits: Tensor, draw: Draw, limits: Limits) -> Tensor:
    largest = logits.amax(-1, keepdim=True)
    spoiled = ~largest[:, 0].isfinite()  # NaN, or nothing that may be drawn
    if not bool(spoiled.any()):
        return draw(logits, largest, limits)
    likeliest = logits.argmax(-1)
    return torch.where(spoiled, likeliest, draw(logits, largest, limits))


def draw_any(logits: Tensor, largest: Tensor, limits: Limits) -> Tensor:
    """Overwrites the logits."""
    own = logits.sub_(largest).div_(limits.temperature.float()).exp_()
    vocab = own.shape[1]
    sums = part_sums(own).cumsum(-1)
    wanted = limits.uniform * sums[:, -1:]
    part = first_beyond(sums, wanted)
    before = torch.where(part > 0, sums.gather(1, (part - 1).clamp(min=0)), 0.0)

    ids = part * PART + torch.arange(PART, device=own.device)
    inside = own.gather(1, ids.clamp(max=vocab - 1)).double().where(ids < vocab, 0.0).cumsum(-1)
    # Summed in another order the part may have a little less than was counted for it.
    wanted = torch.minimum(wanted - before, inside[:, -1:] * (1 - 2.0**-53))
    return ids.gather(1, first_beyond(inside, wanted))[:, 0]


def part_sums(own: Tensor) -> Tensor:
    """[R, V] -> float64 [R, parts], the last of what is left."""
    whole = own.shape[1] // PART * PART
    sums = own[:, :whole].reshape(len(own), -1, PART).sum(-1, dtype=torch.float64)
    if whole == own.shape[1]:
        return sums
    return torch.cat([sums, own[:, whole:].sum(-1, keepdim=True, dtype=torch.float64)], 1)


def draw_limited(logits: Tensor, largest: Tensor, limits: Limits) -> Tensor:
    rows, vocab = logits.shape
    if bool(((limits.top_p < 1.0) & limits.top_k.isinf()).any()):
        total = weight_sums(logits, largest, limits)
    else:
        total = torch.full_like(limits.top_p, torch.inf)  # nobody asks
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    waiting = torch.arange(rows, device=logits.device)
    for width in (*(number for number in CANDIDATES if number < vocab), vocab):
        values, ids = best(logits, width)
        drawn, kept = draw_sorted(values, ids, largest, limits, total)
        # Equals of the last candidate may have been left out: only what comes before it is surely the likeliest.
        sure = (values > values[:, -1:]).sum(-1) if width < vocab else vocab
        done = kept <= sure
        tokens[waiting[done]] = drawn[done]
        more = (~done).nonzero()[:, 0]
        if not len(more):
            break
        waiting, logits, largest, total, limits = waiting[more], logits[more], largest[more], total[more], limits.take(more)
    return tokens


def best(logits: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The values and ids of the likeliest tokens, equals in the order of their ids."""
    if width == logits.shape[1]:
        values, ids = torch.sort(logits, dim=-1, descending=True, stable=True)
        return values, ids
    ids = logits.topk(width).indices.sort(-1).values
    values, order = torch.sort(logits.gather(1, ids), dim=-1, descending=True, stable=True)
    return values, ids.gather(1, order)


def weights(logits: Tensor, largest: Tensor, limits: Limits) -> Tensor:
    """Unnormalized probabilities in float64; the likeliest token has 1."""
    return logits.double().sub_(largest).div_(limits.temperature).exp_()


def weight_sums(logits: Tensor, largest: Tensor, limits: Limits) -> Tensor:
    """[R, 1]"""
    at_once = len(logits) if logits.is_cuda else ROWS_AT_ONCE
    rows = torch.split(torch.arange(len(logits), device=logits.device), at_once)
    sums = [weights(logits[some], largest[some], limits.take(some)).sum(-1, keepdim=True) for some in rows]
    return torch.cat(sums)


def draw_sorted(values: Tensor, ids: Tensor, largest: Tensor, limits: Limits, total: Tensor) -> tuple[Tensor, Tensor]:
    """``values`` and ``ids`` [R, C] of the likeliest; ``total`` [R, 1] is the weight of the whole vocabulary.

    Returns tokens [R], and how many tokens the limits keep [R]: more than C - 1 when C do not suffice to know.
    """
    width = values.shape[1]
    own = weights(values, largest, limits)
    sums = own.cumsum(-1)
    by_min = torch.where(limits.min_p > 0.0, (own >= limits.min_p).sum(-1, keepdim=True), torch.inf)
    # top_p is a share of what top_k leaves. Where that reaches beyond the candidates, nothing is known yet.
    mass = torch.where(limits.top_k.isfinite(), sums.gather(1, limits.top_k.clamp(max=width).long() - 1), total)
    by_p = torch.where(limits.top_p < 1.0, (sums < limits.top_p * mass).sum(-1, keepdim=True) + 1, torch.inf)
    kept = torch.minimum(torch.minimum(limits.top_k, by_p), by_min)
    kept = torch.where(limits.top_k.isfinite() & (limits.top_k > width), torch.inf, kept).clamp(1, width)
    last = sums.gather(1, kept.long() - 1)
    # A share is at most 1 - 2**-53, so its product is less than the total also after rounding.
    return ids.gather(1, first_beyond(sums, limits.uniform * last))[:, 0], kept[:, 0].long()


def first_beyond(sums: Tensor, wanted: Tensor) -> Tensor:
    """[R, 1]: where ``sums`` [R, C] first exceeds what is wanted [R, 1]. What adds nothing is never where."""
    return torch.searchsorted(sums, wanted, right=True).clamp_(max=sums.shape[1] - 1)
