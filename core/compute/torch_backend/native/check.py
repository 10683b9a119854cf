"""A small layer through the native kernels and through plain torch, before the native ones are relied on."""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from core.compute.torch_backend.backend import TorchBackend
from core.compute.torch_backend.native.build import NotBuiltError
from core.interfaces.compute import DTYPE_BYTES, SamplingRows, StepBatch
from core.interfaces.model import DecoderSpec, Weight, WeightName

SPEC = DecoderSpec(
    num_layers=1,
    hidden=80,
    num_heads=6,
    num_kv_heads=2,
    head_dim=32,
    intermediate=112,
    vocab=97,
    max_positions=512,
    rope_theta=10_000.0,
    rope_style="half",
    norm_eps=1e-5,
    tied_head=False,
)
WEIGHTS = (
    WeightName("embed"),
    WeightName("norm", 0, "input"),
    WeightName("qkv", 0),
    WeightName("o", 0),
    WeightName("gate_up", 0),
    WeightName("down", 0),
    WeightName("head"),
)
PAGE = 7
ALLOWED = {4: 1e-5, 2: 3e-2}
"""Difference of any result, as a share of the largest value in it; by the bytes of the number format."""


ALLOWED_IN_EIGHT_BITS = 5e-2  # where keys and values are held so


def check(backend: TorchBackend, allowed: float | None = None) -> None:
    """``allowed``: another difference than what is usual in the backend's number format.

    :raises NotBuiltError: when the kernels compute something else than plain torch."""
    plain = TorchBackend("cpu", "float32", torch.get_num_threads())  # whose products take no time to be made ready
    allowed = allowed or ALLOWED[DTYPE_BYTES[backend.dtype]]
    for (name, found), (_, right) in zip(results(backend), results(plain), strict=True):
        error, scale = float((found.float() - right.float()).abs().max()), float(right.float().abs().max())
        if not error <= allowed * scale:
            raise NotBuiltError(f"tried out, they compute {name} wrongly: off by {error / scale:.2g} of its largest value")


def results(backend: TorchBackend) -> Iterator[tuple[str, Tensor]]:
    """Of a layer: a prompt in pieces, then a token after it and another prompt beside it."""
    embed, norm, qkv, o, gate_up, down, head = (backend.place(weight, SPEC, None) for weight in weights())
    kv = backend.kv_cache(SPEC, 60, PAGE)
    for batch in (*(step([(before, 75)]) for before in (0, 75, 150, 225)), step([(300, 1), (0, 9)])):
        on_device = backend.upload(batch, SPEC, kv)
        hidden = backend.embed(embed, on_device)
        q = backend.qkv(hidden, norm, qkv, kv, 0, on_device)
        yield "queries", q
        mixed = backend.attention(q, kv, 0, on_device)
        yield "attention", mixed
        hidden = backend.linear_add(mixed, o, hidden)
        gated = backend.gate_up(hidden, norm, gate_up)
        yield "the feed-forward", gated
        yield "logits", backend.logits(backend.linear_add(gated, down, hidden), norm, head, on_device)


def weights() -> Iterator[Weight]:
    random = np.random.default_rng(0)
    for name in WEIGHTS:
        values = random.standard_normal(SPEC.shape(name.role), dtype=np.float32)
        scale, shift = {"norm": (1.0, 1.0), "embed": (1.0, 0.0)}.get(name.role, (0.125, 0.0))
        yield Weight(name, ((values * scale + shift).astype(ml_dtypes.bfloat16).astype(np.float32),))


def step(sequences: list[tuple[int, int]]) -> StepBatch:
    """(tokens before, tokens now) of each; their pages lie backwards in the cache."""
    tables = np.arange(60, dtype=np.int32)[::-1].reshape(1, 60)
    tables = np.concatenate([np.roll(tables, -50 * number, 1) for number in range(len(sequences))])
    positions = [np.arange(before, before + now) for before, now in sequences]
    slots = [table[at // PAGE] * PAGE + at % PAGE for table, at in zip(tables, positions, strict=True)]
    starts = np.cumsum([0, *(now for _, now in sequences)])
    tokens = int(starts[-1])
    return StepBatch(
        token_ids=(np.arange(tokens, dtype=np.int32) * 31 + tokens) % SPEC.vocab,
        positions=np.concatenate(positions).astype(np.int32),
        slots=np.concatenate(slots).astype(np.int64),
        query_starts=starts.astype(np.int32),
        context_lens=np.array([before + now for before, now in sequences], np.int32),
        page_table=tables,
        logit_rows=starts[1:].astype(np.int64) - 1,
        num_decodes=sum(now == 1 for _, now in sequences),
        sampling=NOTHING_SAMPLED,
    )


NOTHING_SAMPLED = SamplingRows(
    temperature=np.zeros(0, np.float32),
    top_k=np.zeros(0, np.int32),
    top_p=np.zeros(0, np.float32),
    min_p=np.zeros(0, np.float32),
    seeds=np.zeros(0, np.uint64),
    positions=np.zeros(0, np.int64),
    logprobs=np.zeros(0, np.int32),
)
