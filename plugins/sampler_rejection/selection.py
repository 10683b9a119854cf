"""Finding the k likeliest tokens, and the likeliest, without looking at every token one by one: most blocks hold none."""

from __future__ import annotations

import torch
from torch import Tensor

SPAN = 64  # logits in a block


def first_largest(logits: Tensor) -> Tensor:
    """The lowest id of the largest logit: [R, 1]. For rows without NaN; much faster than ``argmax`` where rows are wide."""
    blocks = in_blocks(logits)
    best = blocks.amax(-1).argmax(-1, keepdim=True)
    inside = blocks.gather(1, best[..., None].expand(-1, -1, SPAN))[:, 0].argmax(-1, keepdim=True)
    return best * SPAN + inside


def nearest(logits: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Few tokens among which are the ``most`` likeliest: their logits and ids [R, C], ascending, and a bound [R, 1] that
    nobody left out exceeds. None where this would not be few.

    The k largest are all in those blocks whose own largest are.
    """
    count = most + most // 2 + 16
    blocks = in_blocks(logits)
    if 4 * count >= blocks.shape[1]:
        return None
    largest, places = blocks.amax(-1).topk(count)
    places = places.sort(-1).values
    near = blocks.gather(1, places[..., None].expand(-1, -1, SPAN)).flatten(1)
    ids = (places[..., None] * SPAN + torch.arange(SPAN, device=logits.device)).flatten(1)
    return near, ids, largest[:, -1:]


def kth_largest(logits: Tensor, top_k: Tensor) -> Tensor:
    """[R, 1], for k [R, 1]."""
    return logits.topk(int(top_k.max())).values.gather(1, top_k - 1)


def zero_beyond_top_k(weights: Tensor, logits: Tensor, top_k: Tensor, least: Tensor) -> None:
    """Zero the weights [R, V or more] of all but the first k tokens, likeliest first and equals by their ids.

    ``least`` is the k-th largest logit [R, 1], -inf where all are kept.
    """
    kept = weights[:, : logits.shape[1]]
    kept.copy_(keep_above(kept, logits, torch.nextafter(least, torch.full_like(least, -torch.inf))))
    behind = (logits >= least).sum(-1, keepdim=True) - top_k
    for row in (behind[:, 0] > 0).nonzero()[:, 0].tolist():  # more equals of the k-th than there is room for
        equals = (logits[row] == least[row]).nonzero()[:, 0]
        kept[row, equals[len(equals) - int(behind[row]) :]] = 0.0


def in_blocks(logits: Tensor) -> Tensor:
    """[R, blocks, SPAN]; the last block is filled up with -inf."""
    missing = -logits.shape[1] % SPAN
    if missing:
        logits = torch.nn.functional.pad(logits, (0, missing), value=-torch.inf)
    return logits.reshape(len(logits), -1, SPAN)


def keep_above(weights: Tensor, values: Tensor, floor: Tensor) -> Tensor:
    """``weights`` where the values exceed the floor [R, 1], else 0. On a CPU much faster than a comparison and ``where``."""
    kept: Tensor = torch.ops.aten.threshold_backward(weights, values - floor, 0.0)
    return kept
