"""Dual-pivot rejection in plain torch.

A token is drawn from all that may still be kept, and accepted if the limits keep it. If they do not, neither do they keep
anything less likely: that is never drawn again. A second pivot, halfway between the drawn weight and one above which too little
lies, shortens the search. Whatever is accepted is distributed as the kept tokens are, renormalized.

Weights, and their sums over blocks, are float32. Where that is too coarse to tell which side of a limit a token lies,
``exact`` settles it in float64; so it does for rows that find nothing in ``ROUNDS``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from sampler_rejection.exact import settle
from sampler_rejection.limits import NEAR, Limits
from sampler_rejection.selection import first_largest, keep_above, kth_largest, nearest, zero_beyond_top_k

BLOCK = 256  # weights summed in float32; the sums of blocks are summed in float64
ROUNDS = 32
WIDE = 1 << 14
TOGETHER = 1 << 19  # weights worked on at once on a CPU: more would leave its caches between one pass and the next


@dataclass
class Waiting:
    """The rows that have no token yet. ``left``: the weights of what may be kept; what top_k, or a pivot, ruled out is 0."""

    number: Tensor  # [R] among all rows
    logits: Tensor  # [R, V]
    largest: Tensor  # [R, 1]
    limits: Limits
    left: Tensor  # [R, blocks * BLOCK]
    sums: Tensor  # [R, blocks] float64
    goal: Tensor  # [R, 1] float64: the mass that top_p asks for, infinite where it is off
    high: Tensor  # [R, 1]: the second pivot is sought below it

    def take(self, which: Tensor) -> Waiting:
        """Some of the rows, by a mask [R]."""
        if bool(which.all()):
            return self
        index = which.nonzero()[:, 0]
        arrays = {each.name: getattr(self, each.name)[index] for each in fields(self) if each.name != "limits"}
        return Waiting(limits=self.limits.take(index), **arrays)

    def go_on(self, which: Tensor, left: Tensor, sums: Tensor) -> None:
        """In these rows, go on with these weights."""
        self.left[which], self.sums[which] = left, sums


def draw(logits: Tensor, largest: Tensor, limits: Limits) -> Tensor:
    """Logits [R, V] and the largest of each row [R, 1], finite -> tokens [R]. Either all rows have a top_k, or none."""
    near = nearest(logits, limits.most) if limits.has_top_k else None
    if near is None:
        least = kth_largest(logits, limits.top_k) if limits.has_top_k else None
        return draw_in_parts(logits, largest, limits, least)
    values, ids, bound = near
    least = kth_largest(values, limits.top_k)
    # Blocks left out may hold equals of the bound: a k-th likeliest that is one of them has to be counted among all.
    sure = (least > bound)[:, 0]
    tokens = ids.gather(1, draw_in_parts(values, largest, limits, least)[:, None])[:, 0]
    if not bool(sure.all()):
        rest = (~sure).nonzero()[:, 0]
        tokens[rest] = draw_in_parts(logits[rest], largest[rest], limits.take(rest), least[rest])
    return tokens


def draw_in_parts(logits: Tensor, largest: Tensor, limits: Limits, least: Tensor | None) -> Tensor:
    together = max(1, TOGETHER // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    if len(logits) <= together:
        return draw_among(logits, largest, limits, least)
    parts = [slice(first, first + together) for first in range(0, len(logits), together)]
    drawn = [draw_among(logits[own], largest[own], limits.take(own), None if least is None else least[own]) for own in parts]
    return torch.cat(drawn)


def draw_among(logits: Tensor, largest: Tensor, limits: Limits, least: Tensor | None) -> Tensor:
    """``least``: the k-th largest logit of each row [R, 1], where there is a top_k."""
    rows = begin(logits, largest, limits, least)
    if not limits.by_mass and not limits.by_min:
        return invert(rows.left, rows.sums, limits.share(0))[:, 0]
    tokens = torch.empty_like(limits.top_k)
    alone = rows.goal[:, 0] < 1.0 - NEAR  # the likeliest token weighs 1
    if bool(alone.any()):
        tokens[alone] = first_largest(logits[alone])
        if bool(alone.all()):
            return tokens[:, 0]
        rows = rows.take(~alone)
    if limits.by_min:
        rows.left = above(rows.left, rows.limits.min_p * (1.0 - NEAR))
        rows.sums = block_sums(rows.left, rows.limits)
    for number in range(ROUNDS):
        drawn = invert(rows.left, rows.sums, rows.limits.share(number))
        kept = kept_by_min(rows, drawn) if limits.by_min else torch.ones_like(drawn, dtype=torch.bool)
        unsure = judge_by_mass(rows, drawn, kept) if limits.by_mass else torch.zeros_like(kept)
        if bool(unsure.any()):
            doubtful = rows.take(unsure[:, 0])
            drawn[unsure] = settled(doubtful, drawn[unsure][:, None], number + 1)[:, 0]
            kept |= unsure
        tokens[rows.number] = drawn
        if bool(kept.all()):
            return tokens[:, 0]
        rows = rows.take(~kept[:, 0])
    tokens[rows.number] = settled(rows, tokens[rows.number], ROUNDS)
    return tokens[:, 0]


def begin(logits: Tensor, largest: Tensor, limits: Limits, least: Tensor | None) -> Waiting:
    count, vocab = logits.shape
    weights = logits.new_empty(count, -(-vocab // BLOCK) * BLOCK)
    torch.sub(logits, largest, out=weights[:, :vocab])
    weights[:, vocab:] = -torch.inf
    weights.div_(limits.temperature.float()).exp_()
    if least is not None:
        zero_beyond_top_k(weights, logits, limits.top_k, least)
    sums = block_sums(weights, limits)
    goal = torch.where(limits.top_p < 1.0, limits.top_p * mass(sums), torch.inf)
    number = torch.arange(count, device=logits.device)
    return Waiting(number, logits, largest, limits, weights, sums, goal, torch.ones_like(goal))


def kept_by_min(rows: Waiting, drawn: Tensor) -> Tensor:
    own = rows.logits.gather(1, drawn).double().sub_(rows.largest).div_(rows.limits.temperature).exp_()
    return own >= rows.limits.min_p


def judge_by_mass(rows: Waiting, drawn: Tensor, kept: Tensor) -> Tensor:
    """Clear ``kept`` where too much comes before the drawn token, and let such rows go on above it.

    Returns where it cannot be told: near the goal, or when it lies among equals of the drawn token.
    """
    pivot = rows.left.gather(1, drawn)
    # What comes before it weighs at most this: all that is as heavy, without itself.
    most = mass(block_sums(above(rows.left, torch.nextafter(pivot, torch.zeros_like(pivot))), rows.limits)) - pivot
    fits = most < rows.goal * (1.0 - NEAR)
    unsure = torch.zeros_like(kept)
    which = (~fits)[:, 0].nonzero()[:, 0]
    if not len(which):
        return unsure
    left, pivot, goal, limits = rows.left[which], pivot[which], rows.goal[which], rows.limits
    beyond = above(left, pivot)
    sums = block_sums(beyond, limits)
    too_much = mass(sums) >= goal * (1.0 + NEAR)
    unsure[which] = kept[which] & ~too_much
    kept[which] &= ~too_much
    out = too_much[:, 0]
    rows.go_on(which[out], beyond[out], sums[out])
    middle = (pivot + rows.high[which]) / 2
    upper = above(beyond, middle)
    sums = block_sums(upper, limits)
    both = mass(sums) >= goal * (1.0 + NEAR)
    rows.high[which] = torch.where(both, rows.high[which], middle)
    both = both[:, 0]
    if bool(both.any()):
        rows.go_on(which[both], upper[both], sums[both])
    return unsure


def settled(rows: Waiting, drawn: Tensor, number: int) -> Tensor:
    return settle(rows.logits, rows.largest, rows.limits, drawn, rows.limits.share(number))


def above(weights: Tensor, floor: Tensor) -> Tensor:
    """The weights that exceed the floor [R, 1], the others 0."""
    floor = floor.float()
    if not weights.is_cpu or weights.shape[1] < WIDE:
        return keep_above(weights, weights, floor)
    kept = torch.empty_like(weights)
    for row, least, out in zip(weights, floor[:, 0].tolist(), kept, strict=True):  # half the passes, for one call a row
        torch.threshold(row, least, 0.0, out=out)
    return kept


def block_sums(weights: Tensor, limits: Limits) -> Tensor:
    blocks = weights.view(len(weights), -1, BLOCK)
    # What top_k leaves lies in other blocks when a neighbour's k is larger, and must sum to the same all the same.
    return blocks.sum(-1, dtype=torch.float64) if limits.has_top_k else blocks.sum(-1).double()


def mass(sums: Tensor) -> Tensor:
    return sums.sum(-1, keepdim=True)


def invert(weights: Tensor, sums: Tensor, share: Tensor) -> Tensor:
    """[R, 1]: where the summed weights first exceed that share of their total. What weighs nothing is never where."""
    until = sums.cumsum(-1)
    goal = share * until[:, -1:]
    block = torch.searchsorted(until, goal, right=True)
    rest = (goal - until.gather(1, block) + sums.gather(1, block)) / sums.gather(1, block)
    inside = weights.view(len(weights), -1, BLOCK).gather(1, block[..., None].expand(-1, -1, BLOCK))[:, 0].double().cumsum(-1)
    total = inside[:, -1:]
    # The float32 sum of a block is not quite what its weights sum to: a share of it is taken, and at most its last weight.
    place = torch.minimum((inside <= rest * total).sum(-1, keepdim=True), (inside < total).sum(-1, keepdim=True))
    return block * BLOCK + place
