"""One request's logits, computed in steps that it has to itself, and in steps that it shares: equal to the bit, or not.

For backends whose steps are deterministic: ``logits(steps("alone", ...))``, and those of each of ``WAYS`` beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.interfaces.compute import ComputeBackend
from core.interfaces.model import DecoderSpec
from core.interfaces.quantizer import Quantizer
from core.models.decoder import Decoder
from core.testing.inputs import PagedSequences, random_weights

Steps = Sequence[tuple[int, Mapping[int, int]]]
"""Of each step: how many tokens of the request it computes, and how many of every other sequence."""
DECODED = 4
WAYS = ("among others", "its prompt in parts", "computed anew")


def steps(way: str, prompt: int, others: int) -> Steps:
    """``way``: "alone" or one of ``WAYS``. The request is a prompt, then ``DECODED`` tokens that are known beforehand.

    "computed anew" is what becomes of a request that had to give up its pages; "in parts", of a divided prompt, of one whose
    beginning is in the cache, and of tokens that were guessed.
    """
    everyone = range(1, others + 1)
    if way == "alone":
        return [(prompt, {})] + [(1, {})] * DECODED
    if way == "among others":
        joining = [range(1, 1 + others * (number + 1) // DECODED) for number in range(DECODED)]
        return [(prompt, {s: 3 + 7 * s % 40 for s in everyone}), *((1, dict.fromkeys(who, 1)) for who in joining)]
    if way == "its prompt in parts":
        rest = prompt - 8 - prompt // 2
        return [(7, {1: 20}), (1, {1: 1}), (prompt // 2, {2: 9}), (rest, {1: 1, 3: 30}), (2, {1: 1}), (DECODED - 2, {2: 1})]
    return [(prompt + DECODED, {1: 3})]


class Request:
    """``logits(steps)``: float32 [prompt + DECODED, vocab], of every token of the request."""

    def __init__(self, backend: ComputeBackend, spec: DecoderSpec, prompt: int, quantizer: Quantizer | None = None) -> None:
        self._backend = backend
        self._decoder = Decoder.load(spec, random_weights(spec).values(), backend, quantizer)
        self._tokens = np.random.default_rng(5).integers(3, spec.vocab, prompt + DECODED).tolist()

    def logits(self, steps: Steps) -> NDArray[Any]:
        backend, spec, page_size = self._backend, self._decoder.spec, 16
        number = 8 + sum(-(-count // page_size) + 1 for own, others in steps for count in (own, *others.values()))
        paged, kv = PagedSequences(number, page_size), backend.kv_cache(spec, number, page_size)
        random = np.random.default_rng(1)
        rows, done = [], 0
        for own, others in steps:
            work = {sequence: random.integers(3, spec.vocab, count).tolist() for sequence, count in others.items()}
            work[0] = self._tokens[done : done + own]
            done += own
            batch = paged.step(work, logits="all")
            found = backend.to_host(self._decoder.forward(backend.upload(batch, spec, kv), kv))
            first = batch.query_starts[paged.order.index(0)]
            rows.append(np.array(found[first : first + own]))
        return np.concatenate(rows)
