"""Recording without a device: a capture API over PyTorch's operations on a CPU, and a backend whose steps can be recorded.

For tests of graph backends. What is recorded are the operations with the very tensors they worked on; a replay runs them again
on what those tensors hold by then, and no Python of the step. So whoever forgets to copy an input, hands out the wrong rows, or
relies on a value that Python looked at, is found out as on a device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from core.compute.torch_backend.attention import PagedKV
from core.compute.torch_backend.backend import TorchBackend
from core.compute.torch_backend.step import Reading, Step
from core.interfaces.compute import DTYPE_BYTES, KVCache, SamplingArrays, SamplingRows, StepBatch
from core.interfaces.graph import StaticStep, StepShape
from core.interfaces.model import DecoderSpec
from core.testing.inputs import sampling_rows

COLUMNS = ("temperature", "top_k", "top_p", "min_p", "seeds", "positions")
WAITING = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique")
"""Operations that bring a value to the host, or whose result has a shape that depends on one."""


class RecordingFake:
    """``warmed``, ``recordings``, ``replays`` count; ``pools`` has the pool of each recording. ``room``: how many recordings
    there is memory for. Each takes ``BYTES``.
    """

    BYTES = 1 << 20

    def __init__(self, room: int | None = None) -> None:
        self.warmed = self.recordings = self.replays = 0
        self.pools: list[Any] = []
        self.room = room

    def pool(self) -> Any:
        return object()

    def warm(self, launch: Callable[[], Any], times: int) -> None:
        for _ in range(times):
            launch()
            self.warmed += 1

    def record(self, launch: Callable[[], Any], pool: Any) -> tuple[Callable[[], None], Any]:
        if self.recordings == self.room:
            raise MemoryError("the fake's memory is full")
        tape = _Tape()
        with tape:
            array = launch()
        tape.spoil()
        self.recordings += 1
        self.pools.append(pool)

        def replay() -> None:
            self.replays += 1
            tape.replay()

        return replay, array

    def taken(self) -> int:
        return self.recordings * self.BYTES


class _Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITING or (name == "index" and any(index.dtype == torch.bool for index in _tensors(args[1]))):
            raise RuntimeError(f"{func} waits for the device: a step that does cannot be recorded")
        out = func(*args, **(kwargs or {}))
        self._calls.append((func, args, kwargs or {}, out))
        return out

    def spoil(self) -> None:
        """On a device, recording computes nothing: what the operations would give is not there before the first replay."""
        for _, args, kwargs, out in self._calls:
            given = {_memory(tensor) for tensor in _tensors((args, kwargs))}
            for tensor in _tensors(out):
                if tensor.is_floating_point() and _memory(tensor) not in given:
                    tensor.fill_(math.nan)

    def replay(self) -> None:
        for func, args, kwargs, out in self._calls:
            for old, new in zip(_tensors(out), _tensors(func(*args, **kwargs)), strict=True):
                if _memory(old) != _memory(new):  # neither a view nor written in place
                    old.copy_(new)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


# --- a backend whose steps can be recorded ----------------------------------------------------------------------------


@dataclass(frozen=True)
class UploadedStep(Step):
    batch: StepBatch
    sampling: SamplingArrays

    @property
    def shape(self) -> StepShape:
        return self.batch.shape


class FixedShapes(TorchBackend):
    """Plain PyTorch. A static step reads whole page tables, however short the contexts: simple, right, and slow."""

    def kv_cache(self, spec: DecoderSpec, num_pages: int, page_size: int) -> PagedKV:
        return _WithScratch(super().kv_cache(spec, num_pages, page_size), DTYPE_BYTES[self.dtype])

    def upload(self, batch: StepBatch, spec: DecoderSpec, kv: KVCache) -> UploadedStep:
        step = super().upload(batch, spec, kv)
        fields = {name: getattr(step, name) for name in Step.__dataclass_fields__}
        return UploadedStep(**fields, batch=batch, sampling=_sampling(batch.sampling))

    def sampling(self, step: Any) -> SamplingArrays | None:
        return step.sampling if step.num_logits else None

    def static_step(self, shape: StepShape, spec: DecoderSpec, kv: KVCache) -> StaticStep | None:
        assert isinstance(kv, _WithScratch)
        return _FixedStep(shape, kv)

    def attention(self, q: Tensor, kv: KVCache, layer: int, step: Any) -> Tensor:
        mixed = super().attention(q, kv, layer, step)
        return mixed.masked_fill(step.seen[:, None] == 0, math.nan) if isinstance(step, _FixedStep) else mixed


def _sampling(rows: SamplingRows) -> SamplingArrays:
    dtypes = {"seeds": np.int64, "positions": np.int32}
    columns = {name: getattr(rows, name) for name in COLUMNS}
    columns["seeds"] = rows.seeds.view(np.int64)
    return SamplingArrays(**{name: torch.tensor(each.astype(dtypes.get(name, each.dtype))) for name, each in columns.items()})


class _WithScratch(PagedKV):
    """One page more, where K and V of padding go."""

    def __init__(self, kv: PagedKV, element: int) -> None:
        memory = kv.keys[0]
        super().__init__(kv.spec, kv.num_pages + 1, kv.page_size, memory.dtype, memory.device)
        self.num_pages, self.turns = kv.num_pages, kv.turns
        self.nbytes = self.num_pages * self.page_size * self.spec.kv_bytes_per_token(element)
        self.scratch = self.num_pages * self.page_size  # its first slot


class _FixedStep(StaticStep):
    """What the operations of ``TorchBackend`` want of a step is computed anew from arrays that never move.

    ``seen`` [T]: how many keys of its sequence a token sees; none for padding, whose attention is NaN then.
    """

    def __init__(self, shape: StepShape, kv: _WithScratch) -> None:
        self.shape = shape
        self._kv = kv
        device = kv.turns.device
        pages = kv.num_pages
        self.num_logits = shape.logits
        self.token_ids = torch.zeros(shape.tokens, dtype=torch.int32, device=device)
        self.logit_rows = None if shape.kind == "decode" else torch.zeros(shape.logits, dtype=torch.int64, device=device)
        self._positions = torch.zeros(shape.tokens, dtype=torch.int32, device=device)
        self._slots = torch.full((shape.tokens,), -1, dtype=torch.int64, device=device)
        self.seen = torch.zeros(shape.tokens, dtype=torch.int32, device=device)
        self._owners = torch.zeros(shape.tokens, dtype=torch.int64, device=device)
        self._page_table = torch.zeros((shape.sequences, pages), dtype=torch.int32, device=device)
        self._keys = torch.arange(pages * kv.page_size, device=device)
        self.sampling = _sampling(sampling_rows(shape.logits, temperature=0.0))

    def fill(self, step: Any) -> None:
        batch: StepBatch = step.batch
        assert self.shape.holds(batch.shape)
        tokens, sequences, rows = batch.num_tokens, batch.num_sequences, len(batch.logit_rows)
        self._slots.fill_(-1)
        self.seen.zero_()
        owners = torch.repeat_interleave(torch.arange(sequences), torch.from_numpy(batch.query_starts).diff())
        for mine, given in (
            (self._positions, batch.positions),
            (self.seen, batch.positions + 1),
            (self._slots, batch.slots),
            (self._owners, owners.numpy()),
        ):
            mine[:tokens].copy_(torch.tensor(given))
        self.token_ids[:tokens].copy_(step.token_ids)
        for name in COLUMNS:
            mine = getattr(self.sampling, name)
            mine.zero_()
            mine[:rows].copy_(getattr(step.sampling, name))
        self._page_table[:sequences, : batch.page_table.shape[1]].copy_(torch.tensor(batch.page_table))
        if self.logit_rows is not None:
            self.logit_rows[:rows].copy_(torch.tensor(batch.logit_rows))

    def advance(self, tokens: Tensor) -> bool:
        if self.shape.kind != "decode":
            return False
        live, size = self.seen > 0, self._kv.page_size
        places = torch.div(self.seen, size, rounding_mode="floor").clamp_(max=self._page_table.shape[1] - 1).long()
        slots = self._page_table.gather(1, places[:, None])[:, 0].long() * size + self.seen % size
        for mine, following in (
            (self.token_ids, tokens),
            (self._positions, self.seen),
            (self._slots, slots),
            (self.sampling.positions, self.seen + 1),
            (self.seen, self.seen + 1),
        ):
            mine.copy_(torch.where(live, following, mine))
        return True

    @property
    def turns(self) -> Tensor:
        return self._kv.turns.index_select(0, self._positions).unsqueeze(1)

    @property
    def slots(self) -> Tensor:
        return torch.where(self._slots < 0, self._kv.scratch, self._slots)

    @property
    def readings(self) -> tuple[Reading, ...]:
        tokens = self.shape.tokens
        pages = self._page_table.index_select(0, self._owners).flatten()
        mask = torch.zeros((tokens, len(self._keys)), dtype=self._kv.keys[0].dtype, device=self._keys.device)
        mask = mask.masked_fill(self._keys >= self.seen[:, None], -math.inf)[:, None, None]
        return (Reading(slice(0, tokens), tokens, 1, pages, len(self._keys), mask),)
