# ruff: noqa: ANN001, ANN201, ANN202, N803 - a kernel's arguments are pointers and scalars of Triton, its constants are in capitals
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
"""Dual-pivot rejection as one Triton program a row, for the rows that ``parts.py`` leaves.

All tokens are in one order: likelier first, equals by their ids. A place in it is a pair (key, id), where the key is the logit
as an integer that sorts alike; "before (key, id)" is what sorts ahead of that place. ``top_k`` is a place, found by bisection;
every rejection moves the place before which the next token is drawn further ahead, so that the loop ends.

Weights are float32 and recomputed in every pass, sums are float64; a sum too near its goal is taken again from float64 weights.
"""

from __future__ import annotations

import numpy as np
import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from core.interfaces.compute import SamplingArrays, SamplingRows
from sampler_rejection.limits import FEWEST

WIDTH = 4096

NEAR = tl.constexpr(1e-5)
LOWEST_KEY = tl.constexpr(-(2**31))
LEFT = tl.constexpr(2)


def on_device(rows: SamplingRows, device: torch.device) -> SamplingArrays:
    """One copy, which the host does not wait for."""
    names = ("temperature", "top_p", "min_p", "top_k", "positions")
    whole = [rows.seeds.view(np.int32).reshape(2, -1), *(getattr(rows, name)[None] for name in names[:4])]
    host = torch.from_numpy(np.concatenate([each.view(np.int32) for each in whole] + [rows.positions[None].astype(np.int32)]))
    words = (host if device.type == "cpu" else host.pin_memory()).to(device, non_blocking=True)
    columns = dict(zip(names, words[2:], strict=True))
    floats = {name: columns[name].view(torch.float32) for name in names[:3]}
    seeds = words[:2].reshape(-1).view(torch.int64)
    return SamplingArrays(**floats, top_k=columns["top_k"], positions=columns["positions"], seeds=seeds)


def finish(logits: Tensor, rows: SamplingArrays, states: Tensor, tokens: Tensor, width: int = WIDTH) -> None:
    """Draw the tokens of the rows whose state is ``LEFT``."""
    count, vocab = logits.shape
    limits = rows.temperature, rows.top_p, rows.min_p, rows.top_k
    _sample[(count,)](
        logits, logits.stride(0), *limits, rows.seeds, rows.positions, states, tokens, VOCAB=vocab, FEWEST=FEWEST, WIDTH=width,
        num_warps=8,
    )  # fmt: skip


@triton.jit
def key_of(x):
    x = tl.where(x == 0.0, 0.0, x)  # -0 equals 0
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def weight_of(x, largest, temperature):
    return tl.exp((x - largest) / temperature)


@triton.jit
def uniform_of(seed, position, number):
    low = (position & 0xFFFFFFFF).to(tl.uint32)
    high = (position >> 32).to(tl.uint32)
    zero = tl.zeros_like(low)
    a, b, _, _ = tl.philox(seed, low, high, zero + number.to(tl.uint32), zero)
    return ((a >> 5).to(tl.float64) * 67108864.0 + (b >> 6).to(tl.float64)) / 9007199254740992.0


@triton.jit
def _row_state(row, vocab: tl.constexpr, WIDTH: tl.constexpr):
    """The largest logit, its lowest id, and the lowest id of a NaN (the vocabulary where there is none)."""
    largest = float("-inf")
    place = 0
    nan = vocab
    for start in range(0, vocab, WIDTH):
        ids = start + tl.arange(0, WIDTH)
        x = tl.load(row + ids, mask=ids < vocab, other=float("-inf"))
        is_nan = x != x
        nan = tl.minimum(nan, tl.min(tl.where(is_nan, ids, vocab), 0))
        x = tl.where(is_nan, float("-inf"), x)
        best = tl.max(x, 0)
        if best > largest:
            place = tl.min(tl.where(x == best, ids, vocab), 0)
            largest = best
    return largest, place, nan


@triton.jit
def _count_from(row, vocab: tl.constexpr, key, WIDTH: tl.constexpr):
    """How many tokens have at least this key."""
    count = 0
    for start in range(0, vocab, WIDTH):
        ids = start + tl.arange(0, WIDTH)
        x = tl.load(row + ids, mask=ids < vocab, other=float("-inf"))
        count += tl.sum(((key_of(x) >= key) & (ids < vocab)).to(tl.int32), 0)
    return count


@triton.jit
def _top_k_place(row, vocab: tl.constexpr, top_k, largest_key, WIDTH: tl.constexpr):
    """(key, id) before which there are just k tokens."""
    low = key_of(tl.full((), float("-inf"), tl.float32)).to(tl.int64)
    high = largest_key.to(tl.int64)
    while low < high:  # at least k from low on; from beyond high on, fewer
        middle = low + (high - low + 1) // 2
        enough = _count_from(row, vocab, middle.to(tl.int32), WIDTH) >= top_k
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    key = low.to(tl.int32)
    room = top_k - _count_from(row, vocab, key + 1, WIDTH)  # for equals of the k-th
    last = vocab
    for start in range(0, vocab, WIDTH):
        ids = start + tl.arange(0, WIDTH)
        x = tl.load(row + ids, mask=ids < vocab, other=float("-inf"))
        equal = ((key_of(x) == key) & (ids < vocab)).to(tl.int32)
        found = equal * (tl.cumsum(equal, 0) == room).to(tl.int32)
        last = tl.minimum(last, tl.min(tl.where(found > 0, ids + 1, vocab), 0))
        room -= tl.sum(equal, 0)
    return key, last


@triton.jit
def _mass_before(row, vocab: tl.constexpr, largest, temperature, key, place, WIDTH: tl.constexpr):
    """What is before (key, place) weighs: of all those, and of those with a greater key."""
    greater = tl.zeros((), tl.float64)
    equal = tl.zeros((), tl.float64)
    for start in range(0, vocab, WIDTH):
        ids = start + tl.arange(0, WIDTH)
        x = tl.load(row + ids, mask=ids < vocab, other=float("-inf"))
        keys = key_of(x)
        weights = weight_of(x, largest, temperature).to(tl.float64)
        greater += tl.sum(tl.where(keys > key, weights, 0.0), 0)
        equal += tl.sum(tl.where((keys == key) & (ids < place), weights, 0.0), 0)
    return greater + equal, greater


@triton.jit
def _exact_mass_before(row, vocab: tl.constexpr, largest, temperature, key, place, WIDTH: tl.constexpr):
    """The same from float64 weights."""
    greater = tl.zeros((), tl.float64)
    equal = tl.zeros((), tl.float64)
    for start in range(0, vocab, WIDTH):
        ids = start + tl.arange(0, WIDTH)
        x = tl.load(row + ids, mask=ids < vocab, other=float("-inf"))
        keys = key_of(x)
        weights = tl.exp((x.to(tl.float64) - largest.to(tl.float64)) / temperature)
        greater += tl.sum(tl.where(keys > key, weights, 0.0), 0)
        equal += tl.sum(tl.where((keys == key) & (ids < place), weights, 0.0), 0)
    return greater + equal, greater


@triton.jit
def _invert(row, vocab: tl.constexpr, largest, temperature, key, place, goal, WIDTH: tl.constexpr):
    """The first token at which what is before (key, place), summed by ids, exceeds the goal."""
    run = tl.zeros((), tl.float64)
    token = -1
    last = 0
    for start in range(0, vocab, WIDTH):
        if token < 0:
            ids = start + tl.arange(0, WIDTH)
            x = tl.load(row + ids, mask=ids < vocab, other=float("-inf"))
            keys = key_of(x)
            weights = weight_of(x, largest, temperature).to(tl.float64)
            weights = tl.where((keys > key) | ((keys == key) & (ids < place)), weights, 0.0)
            last = tl.maximum(last, tl.max(tl.where(weights > 0.0, ids, 0), 0))
            sums = run + tl.cumsum(weights, 0)
            beyond = tl.min(tl.where((sums > goal) & (weights > 0.0), ids, vocab), 0)
            token = tl.where(beyond < vocab, beyond, -1)
            run += tl.sum(weights, 0)
    return tl.where(token < 0, last, token)


@triton.jit
def _sample(logits, stride, temperatures, top_ps, min_ps, top_ks, seeds, positions, states, tokens,
            VOCAB: tl.constexpr, FEWEST: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    number = tl.program_id(0)
    if tl.load(states + number) == LEFT:
        row = logits + number.to(tl.int64) * stride
        exact_temperature = tl.load(temperatures + number).to(tl.float64)
        top_p = tl.maximum(tl.load(top_ps + number).to(tl.float64), FEWEST)
        min_p = tl.minimum(tl.load(min_ps + number).to(tl.float64), 1.0)
        top_k = tl.load(top_ks + number)
        seed = tl.load(seeds + number)
        position = tl.load(positions + number).to(tl.int64)
        temperature = exact_temperature.to(tl.float32)

        largest, token, nan = _row_state(row, VOCAB, WIDTH)
        token = tl.where(nan < VOCAB, nan, token)
        is_drawn = (exact_temperature > 0.0) & (nan == VOCAB) & (largest > float("-inf")) & (largest < float("inf"))
        if is_drawn:
            key = tl.full((), LOWEST_KEY, tl.int32)
            place = tl.full((), 0, tl.int32)
            if (top_k > 0) & (top_k < VOCAB):
                key, place = _top_k_place(row, VOCAB, top_k, key_of(largest), WIDTH)
            first_key = key
            first_place = place
            total, _ = _mass_before(row, VOCAB, largest, temperature, key, place, WIDTH)
            by_mass = top_p < 1.0
            goal = tl.where(by_mass, top_p * total, float("inf"))
            if min_p > 0.0:
                floor = largest + exact_temperature * tl.log(min_p * (1.0 - NEAR))
                floor_key = key_of(floor.to(tl.float32))
                if floor_key > key:
                    key = floor_key
                    place = tl.full((), 0, tl.int32)
            high = tl.full((), 1.0, tl.float64)
            turn = 0
            waiting = 1
            while waiting > 0:
                left, _ = _mass_before(row, VOCAB, largest, temperature, key, place, WIDTH)
                share = uniform_of(seed, position, tl.full((), 0, tl.int32) + turn)
                token = _invert(row, VOCAB, largest, temperature, key, place, share * left, WIDTH)
                turn += 1
                x = tl.load(row + token)
                pivot = key_of(x)
                own = tl.exp((x.to(tl.float64) - largest.to(tl.float64)) / exact_temperature)
                before, greater = _mass_before(row, VOCAB, largest, temperature, pivot, token, WIDTH)
                limit = goal
                if by_mass & (tl.abs(before - goal) <= NEAR * goal):
                    exact, _ = _exact_mass_before(row, VOCAB, largest, exact_temperature, first_key, first_place, WIDTH)
                    limit = top_p * exact
                    before, greater = _exact_mass_before(row, VOCAB, largest, exact_temperature, pivot, token, WIDTH)
                too_much = before >= limit
                if (own >= min_p) & (too_much == 0):
                    waiting = 0
                if too_much:
                    # All equals of the token go where what is likelier weighs enough by itself, else those behind it.
                    key = pivot
                    place = tl.where(greater >= limit, 0, token).to(tl.int32)
                    middle = (own + high) / 2
                    upper_key = key_of((largest + exact_temperature * tl.log(middle)).to(tl.float32))
                    if upper_key > key:
                        upper, _ = _mass_before(row, VOCAB, largest, temperature, upper_key, 0, WIDTH)
                        if upper >= goal * (1.0 + NEAR):
                            key = upper_key
                            place = tl.full((), 0, tl.int32)
                        else:
                            high = middle
        tl.store(tokens + number, token.to(tl.int64))
