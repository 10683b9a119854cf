"""Small inputs for tests: sampling rows, a decoder of a few thousand weights, and steps over a paged cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.interfaces.compute import LogitAdjustment, SamplingRows, StepBatch
from core.interfaces.model import DecoderSpec, RopeStyle, Weight, WeightName, weight_names


def sampling_rows(
    count: int,
    *,
    temperature: float | Sequence[float] = 1.0,
    top_k: int | Sequence[int] = 0,
    top_p: float | Sequence[float] = 1.0,
    min_p: float | Sequence[float] = 0.0,
    seeds: int | Sequence[int] = 0,
    positions: int | Sequence[int] = 0,
    adjustment: LogitAdjustment | None = None,
) -> SamplingRows:
    """Rows that share a parameter (a number) or have one each (a sequence)."""

    def column(value: Any, dtype: Any) -> NDArray[Any]:
        return np.array(np.broadcast_to(np.asarray(value, dtype=dtype), (count,)))

    temperatures = column(temperature, np.float32)
    return SamplingRows(
        temperature=temperatures,
        top_k=column(top_k, np.int32),
        top_p=column(top_p, np.float32),
        min_p=column(min_p, np.float32),
        seeds=column(seeds, np.uint64),
        positions=column(positions, np.int64),
        logprobs=np.full(count, -1, dtype=np.int32),
        adjustment=adjustment,
        all_greedy=bool((temperatures == 0).all()),
    )


def take_rows(rows: SamplingRows, which: Sequence[int]) -> SamplingRows:
    """Some of the rows, in the order asked for."""
    index = np.asarray(which, dtype=np.int64)
    return SamplingRows(
        temperature=rows.temperature[index],
        top_k=rows.top_k[index],
        top_p=rows.top_p[index],
        min_p=rows.min_p[index],
        seeds=rows.seeds[index],
        positions=rows.positions[index],
        logprobs=rows.logprobs[index],
        all_greedy=bool((rows.temperature[index] == 0).all()),
    )


def adjustment(
    rows: int,
    *,
    bias: Mapping[tuple[int, int], float] | None = None,
    banned: Sequence[tuple[int, int]] = (),
    seen: Mapping[tuple[int, int], float] | None = None,
    repetition: float | Sequence[float] = 1.0,
    presence: float | Sequence[float] = 0.0,
    frequency: float | Sequence[float] = 0.0,
) -> LogitAdjustment:
    """An adjustment written as {(row, token): value}."""

    def pairs(keys: Sequence[tuple[int, int]]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        table = np.array(list(keys), dtype=np.int32).reshape(-1, 2)
        return table[:, 0].copy(), table[:, 1].copy()

    def column(value: float | Sequence[float]) -> NDArray[np.float32]:
        return np.array(np.broadcast_to(np.asarray(value, dtype=np.float32), (rows,)))

    bias, seen = bias or {}, seen or {}
    bias_rows, bias_tokens = pairs(list(bias))
    banned_rows, banned_tokens = pairs(list(banned))
    seen_rows, seen_tokens = pairs(list(seen))
    return LogitAdjustment(
        bias_rows=bias_rows,
        bias_tokens=bias_tokens,
        bias_values=np.array(list(bias.values()), dtype=np.float32),
        banned_rows=banned_rows,
        banned_tokens=banned_tokens,
        seen_rows=seen_rows,
        seen_tokens=seen_tokens,
        seen_counts=np.array(list(seen.values()), dtype=np.float32),
        repetition=column(repetition),
        presence=column(presence),
        frequency=column(frequency),
    )


def tiny_spec(
    *,
    num_layers: int = 2,
    hidden: int = 32,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 16,
    intermediate: int = 64,
    vocab: int = 96,
    rope_style: RopeStyle = "interleaved",
    tied_head: bool = True,
    rope_scaling: Mapping[str, Any] | None = None,
) -> DecoderSpec:
    """A decoder in miniature. The defaults have a query width (64) that is not the hidden size, as ERNIE-4.5-0.3B has."""
    return DecoderSpec(
        num_layers=num_layers,
        hidden=hidden,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate=intermediate,
        vocab=vocab,
        max_positions=2048,
        rope_theta=10_000.0,
        rope_style=rope_style,
        norm_eps=1e-5,
        tied_head=tied_head,
        rope_scaling=rope_scaling,
        eos_token_ids=(2,),
        bos_token_id=1,
        pad_token_id=0,
    )


def random_weights(spec: DecoderSpec, seed: int = 0) -> dict[WeightName, Weight]:
    """Seeded float32 weights of every name, fused roles in their parts, norms about one."""
    random = np.random.default_rng(seed)
    drawn: dict[WeightName, Weight] = {}
    for name in weight_names(spec):
        shape = spec.shape(name.role)
        if name.role == "norm":
            values = (1.0 + 0.1 * random.standard_normal(shape)).astype(np.float32)
        else:
            spread = 1.0 if name.role == "embed" else shape[1] ** -0.5
            values = (random.standard_normal(shape) * spread).astype(np.float32)
        if name.role == "head" and spec.tied_head:
            drawn[name] = Weight(name, drawn[WeightName("embed")].parts, tied=True)
        else:
            drawn[name] = Weight(name, split(name, values, spec))
    return drawn


def split(name: WeightName, values: NDArray[Any], spec: DecoderSpec) -> tuple[NDArray[Any], ...]:
    """The parts in which a checkpoint holds a fused weight."""
    cuts = {"qkv": [spec.q_width, spec.q_width + spec.kv_width], "gate_up": [spec.intermediate]}.get(name.role, [])
    return tuple(np.ascontiguousarray(part) for part in np.split(values, cuts))


class PagedSequences:
    """Token sequences on one paged cache: gives each step's ``StepBatch``, with pages handed out in a shuffled order.

    Page 0 belongs to the first sequence that needs a page, so that padding of the page table points at real contents.
    """

    def __init__(self, num_pages: int, page_size: int, seed: int = 0) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.lengths: dict[int, int] = {}
        self.pages: dict[int, list[int]] = {}
        self.order: list[int] = []  # the sequences of the latest step, row by row
        order = np.random.default_rng(seed).permutation(np.arange(1, num_pages))
        self._free = [int(page) for page in order[::-1]] + [0]

    def drop(self, sequence: int) -> None:
        """Give a sequence's pages back, the last first, contents and all."""
        del self.lengths[sequence]
        self._free += self.pages.pop(sequence)

    def step(self, work: Mapping[int, Sequence[int]], *, logits: str = "last") -> StepBatch:
        """Compute ``work[sequence]`` new tokens of each sequence. ``logits``: of the "last" token of each, of "all", or "none".

        Rows of the batch are ordered as the engine orders them: sequences that decode one token first.
        """
        decodes = [s for s, tokens in work.items() if len(tokens) == 1 and self.lengths.get(s, 0) > 0]
        order = decodes + [s for s in work if s not in decodes]
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        starts = [0]
        for sequence in order:
            first = self.lengths.get(sequence, 0)
            total = first + len(work[sequence])
            pages = self.pages.setdefault(sequence, [])
            while len(pages) * self.page_size < total:
                pages.append(self._free.pop())
            self.lengths[sequence] = total
            ids += work[sequence]
            positions += range(first, total)
            slots += [pages[p // self.page_size] * self.page_size + p % self.page_size for p in range(first, total)]
            starts.append(len(ids))
        table = np.zeros((len(order), max(len(self.pages[s]) for s in order)), dtype=np.int32)
        for row, sequence in enumerate(order):
            table[row, : len(self.pages[sequence])] = self.pages[sequence]
        wanted = {"last": [end - 1 for end in starts[1:]], "all": list(range(len(ids))), "none": []}[logits]
        self.order = order
        return StepBatch(
            token_ids=np.array(ids, dtype=np.int32),
            positions=np.array(positions, dtype=np.int32),
            slots=np.array(slots, dtype=np.int64),
            query_starts=np.array(starts, dtype=np.int32),
            context_lens=np.array([self.lengths[s] for s in order], dtype=np.int32),
            page_table=table,
            logit_rows=np.array(wanted, dtype=np.int64),
            num_decodes=len(decodes),
            sampling=sampling_rows(len(wanted), temperature=0.0),
        )
