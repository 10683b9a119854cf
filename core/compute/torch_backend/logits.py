"""What is done to logits [R, V] besides sampling."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from core.compute.torch_backend.step import to_device
from core.interfaces.compute import LogitAdjustment


def adjust(logits: Tensor, changes: LogitAdjustment) -> Tensor:
    device = logits.device
    if len(changes.bias_rows):
        where = (to_device(changes.bias_rows, device), to_device(changes.bias_tokens, device))
        logits.index_put_(where, to_device(changes.bias_values, device), accumulate=True)
    if len(changes.seen_rows):
        where = (to_device(changes.seen_rows, device), to_device(changes.seen_tokens, device))
        counts = to_device(changes.seen_counts, device)
        repetition, presence, frequency = (
            to_device(each, device)[where[0]] for each in (changes.repetition, changes.presence, changes.frequency)
        )
        values = logits[where]
        values = torch.where(values > 0, values / repetition, values * repetition)
        logits.index_put_(where, values - frequency * counts - presence * (counts > 0))
    if len(changes.banned_rows):
        where = (to_device(changes.banned_rows, device), to_device(changes.banned_tokens, device))
        logits.index_put_(where, torch.tensor(-math.inf, device=device))
    if changes.masks is not None:
        allowed = to_device(changes.allowed(logits.shape[1]), device)
        rows = to_device(changes.masked_rows, device)
        logits[rows] = logits[rows].masked_fill_(~allowed, -math.inf)
    return logits


def logprobs(logits: Tensor, token_ids: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Among equal logits the lower id is the likelier one, in ranks and in the order of the top ids."""
    sums = logits.logsumexp(-1)
    chosen = logits.gather(1, token_ids[:, None])
    ids = torch.arange(logits.shape[1], device=logits.device)
    ranks = ((logits > chosen) | ((logits == chosen) & (ids < token_ids[:, None]))).sum(-1)
    top_ids = _best(logits, most)
    top = logits.gather(1, top_ids)
    return chosen[:, 0] - sums, ranks, top_ids, top - sums[:, None]


def _best(logits: Tensor, most: int) -> Tensor:
    """The ids of the largest, best first. ``topk`` takes any among equals; a key of logit and id has no equal."""
    bits = (logits + 0.0).view(torch.int32)  # + 0.0: of two zeros none is smaller
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()  # in the order of the floats
    backwards = torch.arange(logits.shape[1] - 1, -1, -1, device=logits.device)
    keys = (ordered << 32) | backwards
    return logits.shape[1] - 1 - (keys.topk(most).values & 0xFFFFFFFF)
