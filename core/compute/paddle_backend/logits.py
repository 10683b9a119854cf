"""What is done to logits [R, V] besides sampling."""

from __future__ import annotations

import math

import numpy as np
import paddle
from paddle import Tensor

from core.compute.paddle_backend.machine import to_device
from core.interfaces.compute import LogitAdjustment


def adjust(logits: Tensor, changes: LogitAdjustment) -> Tensor:
    place = logits.place
    if len(changes.bias_rows):
        where = (to_device(changes.bias_rows, place), to_device(changes.bias_tokens, place))
        logits.index_put_(where, to_device(changes.bias_values, place), accumulate=True)
    if len(changes.seen_rows):
        where = (to_device(changes.seen_rows, place), to_device(changes.seen_tokens, place))
        counts = to_device(changes.seen_counts, place)
        repetition, presence, frequency = (
            to_device(each[changes.seen_rows], place) for each in (changes.repetition, changes.presence, changes.frequency)
        )
        values = logits[where]
        values = paddle.where(values > 0, values / repetition, values * repetition)
        logits.index_put_(where, values - frequency * counts - presence * (counts > 0).cast("float32"))
    if len(changes.banned_rows):
        where = (to_device(changes.banned_rows, place), to_device(changes.banned_tokens, place))
        logits.index_put_(where, to_device(np.array(-math.inf, np.float32), place))
    if changes.masks is not None:
        rows = to_device(changes.masked_rows, place)
        allowed = to_device(changes.allowed(logits.shape[1]), place)
        logits[rows] = logits[rows].masked_fill(paddle.logical_not(allowed), -math.inf)
    return logits


def logprobs(logits: Tensor, token_ids: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Among equal logits the lower id is the likelier one, in ranks and in the order of the top ids."""
    sums = paddle.logsumexp(logits, -1)
    chosen = paddle.take_along_axis(logits, token_ids.unsqueeze(1), 1)
    ids = paddle.arange(logits.shape[1])
    before = paddle.logical_and(logits == chosen, ids < token_ids.unsqueeze(1))
    ranks = paddle.logical_or(logits > chosen, before).cast("int64").sum(-1)
    top_ids = _best(logits, most)
    top = paddle.take_along_axis(logits, top_ids, 1) if most else paddle.zeros([len(logits), 0])
    return chosen[:, 0] - sums, ranks, top_ids, top - sums.unsqueeze(1)


def _best(logits: Tensor, most: int) -> Tensor:
    """The ids of the largest, best first. ``topk`` takes any among equals; a key of logit and id has no equal."""
    if not most:
        return paddle.zeros([len(logits), 0], "int64")
    last = logits.shape[1] - 1
    bits = (logits + 0.0).view("int32").cast("int64")  # + 0.0: of two zeros none is smaller
    ordered = paddle.where(bits < 0, -(2**31) - bits, bits)  # in the order of the floats
    keys = ordered * 2**32 + paddle.arange(last, -1, -1)
    return last - paddle.topk(keys, most).values % 2**32
