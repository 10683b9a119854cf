# ruff: noqa: ANN001, ANN202, N803 - a kernel's arguments are pointers and scalars of Triton, its constants are in capitals
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
"""The same draw with every row divided among programs, so that a few rows fill a device and many are read as fast as it can.

A pass over the logits leaves sums for each part of a row; a program a row adds them up, judges the last draw, and finds the
next in the one part where it lies. What a sum is too coarse for, what is still waiting after ``ROUNDS``, and rows with a
``top_k`` or ``min_p`` are left to ``kernel.py``, where a program works on one row until it is done. Nothing depends on the
other rows.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from core.interfaces.compute import SamplingArrays
from sampler_rejection.kernel import LEFT, LOWEST_KEY, NEAR, finish, key_of, uniform_of, weight_of
from sampler_rejection.limits import FEWEST

WIDTH = 4096  # logits of a part
ROUNDS = 3  # of ten thousand rows with top_p 0.95 about one is not done by then
DONE, WAITING = tl.constexpr(0), tl.constexpr(1)


def draw(logits: Tensor, rows: SamplingArrays, width: int = WIDTH) -> Tensor:
    count, vocab = logits.shape
    parts = -(-vocab // width)
    new, device = torch.empty, logits.device
    tokens = new(count, dtype=torch.int64, device=device)
    places = new((count, parts), dtype=torch.int32, device=device)  # of the largest
    largest = new((count, parts), dtype=torch.float32, device=device)
    sums = new((3, count, parts), dtype=torch.float64, device=device)
    numbers = new((3, count), dtype=torch.float64, device=device)  # the largest, the goal, the second pivot's limit
    states = new(count, dtype=torch.int32, device=device)
    row = logits, logits.stride(0), rows.temperature
    together = {"VOCAB": vocab, "WIDTH": width, "PARTS": parts, "BLOCK": triton.next_power_of_2(parts)}
    limits = rows.top_p, rows.min_p, rows.top_k
    keyed = rows.seeds, rows.positions
    _survey[(count, parts)](*row, largest, places, sums, **_without(together, "BLOCK"))
    _begin[(count,)](
        *row, *limits, *keyed, largest, places, sums, numbers, states, tokens, FEWEST=FEWEST, **together, num_warps=8
    )
    for turn in range(1, ROUNDS + 1):
        _weigh[(count, parts)](*row, sums, numbers, states, tokens, **_without(together, "BLOCK"))
        last = turn == ROUNDS
        _judge[(count,)](*row, *keyed, sums, numbers, states, tokens, TURN=turn, LAST=last, **together, num_warps=8)
    finish(logits, rows, states, tokens, width)
    return tokens


def _without(constants: dict[str, int], name: str) -> dict[str, int]:
    return {key: value for key, value in constants.items() if key != name}


@triton.jit
def _survey(logits, stride, temperatures, largest, places, sums, VOCAB: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr):
    """Of each part the largest logit, NaN if there is one, with its lowest id; and the sum of weights relative to it."""
    row, part = tl.program_id(0), tl.program_id(1)
    ids = part * WIDTH + tl.arange(0, WIDTH)
    x = tl.load(logits + row.to(tl.int64) * stride + ids, mask=ids < VOCAB, other=float("-inf"))
    temperature = tl.load(temperatures + row)
    is_nan = x != x
    nan = tl.min(tl.where(is_nan, ids, VOCAB), 0)
    x = tl.where(is_nan, float("-inf"), x)
    best = tl.max(x, 0)
    place = tl.min(tl.where(x == best, ids, VOCAB), 0)
    at = row * PARTS + part
    tl.store(largest + at, tl.where(nan < VOCAB, float("nan"), best))
    tl.store(places + at, tl.where(nan < VOCAB, nan, place))
    if (temperature > 0.0) & (best > float("-inf")) & (best < float("inf")):
        tl.store(sums + at, tl.sum(weight_of(x, best, temperature).to(tl.float64), 0))
    else:
        tl.store(sums + at, tl.zeros((), tl.float64))


@triton.jit
def _drawn(row, sums, share, largest, temperature, key, place, VOCAB: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """The first token at which what is before (key, place), summed by ids, exceeds a share of it; ``sums`` [BLOCK] of parts."""
    numbers = tl.arange(0, BLOCK)
    until = tl.cumsum(sums, 0)
    goal = share * tl.sum(sums, 0)
    part = tl.min(tl.where((until > goal) & (sums > 0.0), numbers, BLOCK), 0)
    part = tl.where(part < BLOCK, part, tl.max(tl.where(sums > 0.0, numbers, 0), 0))
    rest = goal - tl.sum(tl.where(numbers < part, sums, 0.0), 0)
    ids = part * WIDTH + tl.arange(0, WIDTH)
    x = tl.load(row + ids, mask=ids < VOCAB, other=float("-inf"))
    keys = key_of(x)
    weights = weight_of(x, largest, temperature).to(tl.float64)
    weights = tl.where((keys > key) | ((keys == key) & (ids < place)), weights, 0.0)
    beyond = tl.min(tl.where((tl.cumsum(weights, 0) > rest) & (weights > 0.0), ids, VOCAB), 0)
    return tl.where(beyond < VOCAB, beyond, tl.max(tl.where(weights > 0.0, ids, 0), 0))


@triton.jit
def _begin(logits, stride, temperatures, top_ps, min_ps, top_ks, seeds, positions, largest, places, sums, numbers,
           states, tokens, FEWEST: tl.constexpr, VOCAB: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr,
           BLOCK: tl.constexpr):  # fmt: skip
    """The first draw of each row, from all of it; where nothing is to be judged, its token."""
    number = tl.program_id(0)
    count = tl.num_programs(0)
    row = logits + number.to(tl.int64) * stride
    parts = tl.arange(0, BLOCK)
    at = number * PARTS + parts
    bests = tl.load(largest + at, mask=parts < PARTS, other=float("-inf"))
    ids = tl.load(places + at, mask=parts < PARTS, other=VOCAB)
    is_nan = bests != bests
    nan = tl.min(tl.where(is_nan, ids, VOCAB), 0)
    bests = tl.where(is_nan, float("-inf"), bests)
    best = tl.max(bests, 0)
    exact_temperature = tl.load(temperatures + number).to(tl.float64)
    token = tl.where(nan < VOCAB, nan, tl.min(tl.where(bests == best, ids, VOCAB), 0))
    state = DONE
    if (exact_temperature > 0.0) & (nan == VOCAB) & (best > float("-inf")) & (best < float("inf")):
        top_p = tl.maximum(tl.load(top_ps + number).to(tl.float64), FEWEST)
        top_k = tl.load(top_ks + number)
        if ((top_k > 0) & (top_k < VOCAB)) | (tl.load(min_ps + number) > 0.0):
            state = LEFT
        else:
            own = tl.load(sums + at, mask=parts < PARTS, other=0.0)
            own = tl.where(own > 0.0, own * tl.exp((bests.to(tl.float64) - best) / exact_temperature), 0.0)
            position = tl.load(positions + number).to(tl.int64)
            share = uniform_of(tl.load(seeds + number), position, tl.full((), 0, tl.int32))
            lowest = tl.full((), LOWEST_KEY, tl.int32)
            token = _drawn(row, own, share, best, exact_temperature.to(tl.float32), lowest, 0, VOCAB, WIDTH, BLOCK)
            state = tl.where(top_p < 1.0, WAITING, DONE)
            tl.store(numbers + number, best.to(tl.float64))
            tl.store(numbers + count + number, top_p * tl.sum(own, 0))
            tl.store(numbers + 2 * count + number, tl.full((), 1.0, tl.float64))
    tl.store(tokens + number, token.to(tl.int64))
    tl.store(states + number, state)


@triton.jit
def _pivots(row, token, best, high, exact_temperature):
    """The drawn token's key, and the second pivot: halfway to the likeliest that has been found to be too much."""
    x = tl.load(row + token)
    own = tl.exp((x.to(tl.float64) - best) / exact_temperature)
    middle = (own + high) / 2
    return key_of(x), key_of((best + exact_temperature * tl.log(middle)).to(tl.float32)), middle


@triton.jit
def _weigh(logits, stride, temperatures, sums, numbers, states, tokens, VOCAB: tl.constexpr, WIDTH: tl.constexpr,
           PARTS: tl.constexpr):  # fmt: skip
    """Of each part what is likelier than the drawn token, its equals with lower ids, what is likelier than the second pivot."""
    number, part = tl.program_id(0), tl.program_id(1)
    count = tl.num_programs(0)
    if tl.load(states + number) == WAITING:
        row = logits + number.to(tl.int64) * stride
        token = tl.load(tokens + number)
        best = tl.load(numbers + number)
        high = tl.load(numbers + 2 * count + number)
        exact_temperature = tl.load(temperatures + number).to(tl.float64)
        pivot, upper, _ = _pivots(row, token, best, high, exact_temperature)
        ids = part * WIDTH + tl.arange(0, WIDTH)
        x = tl.load(row + ids, mask=ids < VOCAB, other=float("-inf"))
        keys = key_of(x)
        weights = weight_of(x, best.to(tl.float32), exact_temperature.to(tl.float32)).to(tl.float64)
        at = sums + number * PARTS + part
        tl.store(at, tl.sum(tl.where(keys > pivot, weights, 0.0), 0))
        tl.store(at + count * PARTS, tl.sum(tl.where((keys == pivot) & (ids < token), weights, 0.0), 0))
        tl.store(at + 2 * count * PARTS, tl.sum(tl.where(keys > upper, weights, 0.0), 0))


@triton.jit
def _judge(logits, stride, temperatures, seeds, positions, sums, numbers, states, tokens, TURN: tl.constexpr,
           LAST: tl.constexpr, VOCAB: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr,
           BLOCK: tl.constexpr):  # fmt: skip
    """The drawn token is kept if less than the goal comes before it; else another is drawn from less."""
    number = tl.program_id(0)
    count = tl.num_programs(0)
    if tl.load(states + number) == WAITING:
        parts = tl.arange(0, BLOCK)
        at = sums + number * PARTS + parts
        greater = tl.load(at, mask=parts < PARTS, other=0.0)
        equal = tl.load(at + count * PARTS, mask=parts < PARTS, other=0.0)
        above = tl.load(at + 2 * count * PARTS, mask=parts < PARTS, other=0.0)
        goal = tl.load(numbers + count + number)
        all_greater = tl.sum(greater, 0)
        before = all_greater + tl.sum(equal, 0)
        state = tl.where(before < goal, DONE, WAITING)
        if tl.abs(before - goal) <= NEAR * goal:
            state = LEFT
        elif before >= goal:
            if LAST:
                state = LEFT
            else:
                row = logits + number.to(tl.int64) * stride
                token = tl.load(tokens + number).to(tl.int32)
                best = tl.load(numbers + number)
                high = tl.load(numbers + 2 * count + number)
                exact_temperature = tl.load(temperatures + number).to(tl.float64)
                pivot, upper, middle = _pivots(row, token, best, high, exact_temperature)
                # All equals of the token go where what is likelier weighs enough by itself, else those behind it.
                all_equals = all_greater >= goal
                is_above = (upper > pivot) & (tl.sum(above, 0) >= goal * (1.0 + NEAR))
                own = tl.where(is_above, above, tl.where(all_equals, greater, greater + equal))
                key = tl.where(is_above, upper, pivot)
                place = tl.where(is_above | all_equals, 0, token)
                tl.store(numbers + 2 * count + number, tl.where(is_above | (upper <= pivot), high, middle))
                share = uniform_of(
                    tl.load(seeds + number), tl.load(positions + number).to(tl.int64), tl.full((), TURN, tl.int32)
                )
                temperature = exact_temperature.to(tl.float32)
                token = _drawn(row, own, share, best.to(tl.float32), temperature, key, place, VOCAB, WIDTH, BLOCK)
                tl.store(tokens + number, token.to(tl.int64))
        tl.store(states + number, state)
