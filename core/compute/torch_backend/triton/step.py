"""A step's inputs on the device: one buffer of 32-bit words, filled by one copy that the host does not wait for.

Where a step's inputs lie, and what is launched for it, depends on its ``Layout`` alone, never on what the inputs are. So a step
may be recorded, and replayed with the contents of another one that its layout has room for (``static.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.interfaces.compute import SamplingArrays, StepBatch
from core.interfaces.graph import StepShape

Words = TypeVar("Words", Tensor, NDArray[np.int32])  # of 32 bits
ALIGNED = 16  # words: Triton compiles anew for a pointer or a number that is no multiple of 16


@dataclass(frozen=True)
class Layout:
    tokens: int
    decodes: int  # sequences of one token each, before the others
    prompts: int
    tiles: int  # blocks of queries that the prompts are divided into
    pages: int  # width of the page table
    rows: int | None  # whose logits are wanted; None: every token's, in order

    @property
    def sequences(self) -> int:
        return self.decodes + self.prompts

    @property
    def logits(self) -> int:
        return self.tokens if self.rows is None else self.rows

    @cached_property
    def fields(self) -> dict[str, slice]:
        lengths = {
            "token_ids": self.tokens,
            "positions": self.tokens,
            "slots": self.tokens,
            "context_lens": self.sequences,
            "query_starts": self.sequences + 1,
            "tiles": 2 * self.tiles,
            "logit_rows": self.rows or 0,
            "sampling": COLUMNS * aligned(self.logits),
            "page_table": self.sequences * self.pages,
        }
        fields, first = {}, 0
        for name, length in lengths.items():
            fields[name] = slice(first, first + length)
            first += aligned(length)
        return fields


COLUMNS = 7
"""Of sampling parameters, each ``aligned``: temperature, top_p, min_p, top_k, position; the seeds fill two."""


def columns(words: Words, rows: int) -> dict[str, Words]:
    """By the names of ``SamplingRows``, [rows] each, as words; of ``seeds`` two a row."""
    field = words.reshape(COLUMNS, -1)
    names = ("temperature", "top_p", "min_p", "top_k", "positions")
    return {name: field[index, :rows] for index, name in enumerate(names)} | {"seeds": field[5:].reshape(-1)[: 2 * rows]}


def aligned(words: int) -> int:
    return -(-words // ALIGNED) * ALIGNED


class Step:
    """Fields are views of one buffer, int32, in the order of ``Layout.fields``."""

    def __init__(self, shape: StepShape, layout: Layout, device: torch.device) -> None:
        self.shape = shape
        self.layout = layout
        self.num_logits = layout.logits
        fields = layout.fields
        self.buffer = torch.empty(fields["page_table"].stop, dtype=torch.int32, device=device)
        view = {name: self.buffer[field] for name, field in fields.items()}
        self.token_ids = view["token_ids"]  # [T]
        self.positions = view["positions"]  # [T]
        self.slots = view["slots"]  # [T]; negative: written nowhere
        self.context_lens = view["context_lens"]  # [S]
        self.query_starts = view["query_starts"]  # [S + 1]
        self.tiles = view["tiles"].view(-1, 2)  # which sequence, negative for none; the row of its first token
        self.logit_rows = None if layout.rows is None else view["logit_rows"]
        self.page_table = view["page_table"].view(layout.sequences, layout.pages)
        self.columns = view["sampling"]

    @cached_property
    def sampling(self) -> SamplingArrays:
        column = columns(self.columns, self.num_logits)
        floats = {name: column[name].view(torch.float32) for name in ("temperature", "top_p", "min_p")}
        whole = {name: column[name] for name in ("top_k", "positions")}
        return SamplingArrays(**floats, **whole, seeds=column["seeds"].view(torch.int64))


def upload(batch: StepBatch, block: int, device: torch.device) -> Step:
    """``block``: queries to a tile."""
    counts = -(-np.diff(batch.query_starts[batch.num_decodes :]) // block)  # tiles of each prompt
    step = Step(batch.shape, layout_of(batch, int(counts.sum())), device)
    # PyTorch does not hand pinned memory out again while a copy from it is under way.
    host = torch.empty(len(step.buffer), dtype=torch.int32, pin_memory=device.type != "cpu")
    pack(batch, step.layout, counts, block, host.numpy())
    step.buffer.copy_(host, non_blocking=True)
    return step


def layout_of(batch: StepBatch, tiles: int) -> Layout:
    rows, tokens, decodes = batch.logit_rows, batch.num_tokens, batch.num_decodes
    every = len(rows) == tokens and bool((rows == np.arange(tokens)).all())
    pages = aligned(batch.page_table.shape[1])
    return Layout(tokens, decodes, batch.num_sequences - decodes, tiles, pages, None if every else len(rows))


def pack(batch: StepBatch, layout: Layout, counts: NDArray[np.int32], block: int, words: NDArray[np.int32]) -> None:
    field = {name: words[where] for name, where in layout.fields.items()}
    for name in ("token_ids", "positions", "slots", "context_lens", "query_starts"):
        field[name][:] = getattr(batch, name)
    if layout.rows is not None:
        field["logit_rows"][:] = batch.logit_rows
    if layout.tiles:
        owners = np.repeat(np.arange(len(counts)), counts)
        ordinals = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
        tiles = field["tiles"].reshape(-1, 2)
        tiles[:, 0] = owners + batch.num_decodes
        tiles[:, 1] = batch.query_starts[tiles[:, 0]] + ordinals * block
    if len(batch.sampling):  # only the rank that samples is told how
        for name, column in columns(field["sampling"], len(batch.logit_rows)).items():
            given = getattr(batch.sampling, name)
            column[:] = given if name == "positions" else given.view(np.int32)
    # What is behind a sequence's own pages is never read.
    field["page_table"].reshape(layout.sequences, layout.pages)[:, : batch.page_table.shape[1]] = batch.page_table
