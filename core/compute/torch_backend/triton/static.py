# ruff: noqa: ANN001, ANN202, N803 - a kernel's arguments are pointers and scalars of Triton, its constants are in capitals
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,misc"
"""Steps that are recorded once and filled again and again: one kernel takes over another step's contents, and pads the rest.

Another is recorded behind a decode step and makes of it the one that follows. A third puts tokens into an uploaded step.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from core.compute.torch_backend.triton.arithmetic import bound
from core.compute.torch_backend.triton.step import ALIGNED, COLUMNS, Layout, Step, aligned
from core.interfaces.graph import StaticStep, StepShape

PROGRAMS = 16
WORDS = 256  # that a program copies at a time


class TritonStaticStep(Step, StaticStep):
    def __init__(self, shape: StepShape, pages: int, page_size: int, block: int, device: torch.device) -> None:
        """``pages``: of the longest context; ``block``: queries to a tile."""
        self._page_size = page_size
        sequences, tokens = shape.sequences, shape.tokens
        if shape.kind == "decode":
            layout = Layout(sequences, sequences, 0, 0, aligned(pages), None)
        else:
            layout = Layout(tokens, 0, sequences, tokens // block + sequences, aligned(pages), sequences)
        super().__init__(shape, layout, device)
        self.buffer.zero_()
        self.slots.fill_(-1)
        self.tiles.fill_(-1)

    def fill(self, step: Step) -> None:
        """Of one kind with this. A padded sequence begins where the tokens end, and so has none; its context is empty."""
        own, other = self.layout, step.layout
        rows = self.context_lens if step.logit_rows is None else step.logit_rows  # any memory, where no rows are held
        _fill[(PROGRAMS,)](
            step.token_ids, step.positions, step.slots, step.context_lens, step.query_starts, step.tiles, rows, step.columns,
            step.page_table,
            self.token_ids, self.positions, self.slots, self.context_lens, self.query_starts, self.tiles,
            self.context_lens if self.logit_rows is None else self.logit_rows, self.columns, self.page_table,
            other.tokens, other.sequences, 2 * other.tiles, other.rows or 0, other.pages,
            own.tokens, own.sequences, 2 * own.tiles, own.rows or 0, own.pages,
            COLUMNS=COLUMNS,
            ALIGNED=ALIGNED,
            WORDS=WORDS,
            num_warps=2,
        )  # fmt: skip

    def advance(self, tokens: Tensor) -> bool:
        if self.shape.kind != "decode":
            return False
        sequences = self.shape.sequences
        _advance[(-(-sequences // WORDS),)](
            tokens, self.token_ids, self.positions, self.slots, self.context_lens, self.sampling.positions, self.page_table,
            sequences, self.layout.pages, PAGE=self._page_size, WORDS=WORDS, num_warps=2,
        )  # fmt: skip
        return True


def follow(step: Step, tokens: Tensor) -> None:
    """Where the step's token ids are negative, those that the step before gives."""
    _follow[(-(-step.layout.tokens // WORDS),)](step.token_ids, tokens, step.layout.tokens, WORDS=WORDS, num_warps=2)


@triton.jit(do_not_specialize=["length"])
def _follow(token_ids, tokens, length, WORDS: tl.constexpr):
    words = tl.program_id(0) * WORDS + tl.arange(0, WORDS)
    ids = tl.load(token_ids + words, mask=words < length, other=0)
    given = tl.load(tokens + (-1 - ids), mask=ids < 0, other=0)
    tl.store(token_ids + words, given.to(tl.int32), mask=ids < 0)


@triton.jit
def _advance(tokens, token_ids, positions, slots, context_lens, draw_positions, page_table, sequences, pages,
             PAGE: tl.constexpr, WORDS: tl.constexpr):  # fmt: skip
    """A row without context is padding. What is left of a row that needs another page is nothing, and not launched."""
    row = tl.program_id(0) * WORDS + tl.arange(0, WORDS)
    context = tl.load(context_lens + row, mask=row < sequences, other=0)
    is_live = context > 0
    page = tl.load(page_table + row * pages + context // PAGE, mask=is_live & (context // PAGE < pages), other=0)
    tl.store(token_ids + row, tl.load(tokens + row, mask=is_live, other=0).to(tl.int32), mask=is_live)
    tl.store(positions + row, context, mask=is_live)
    tl.store(slots + row, page * PAGE + context % PAGE, mask=is_live)
    tl.store(context_lens + row, context + 1, mask=is_live)
    tl.store(draw_positions + row, context + 1, mask=is_live)


@triton.jit
def _copy(source, target, length, size, padding, WORDS: tl.constexpr):
    """``length`` words, and padding behind them until there are ``size``."""
    for start in range(bound(tl.program_id(0) * WORDS), bound(size), bound(tl.num_programs(0) * WORDS)):
        words = start + tl.arange(0, WORDS)
        taken = tl.load(source + words, mask=words < length, other=0)
        tl.store(target + words, tl.where(words < length, taken, padding), mask=words < size)


SIZES = ["tokens", "sequences", "tiles", "rows", "pages", "own_tokens", "own_sequences", "own_tiles", "own_rows", "own_pages"]


@triton.jit(do_not_specialize=SIZES)
def _fill(token_ids, positions, slots, context_lens, query_starts, tile_words, logit_rows, columns, page_table,
          own_token_ids, own_positions, own_slots, own_context_lens, own_query_starts, own_tile_words, own_logit_rows,
          own_columns, own_page_table,
          tokens, sequences, tiles, rows, pages, own_tokens, own_sequences, own_tiles, own_rows, own_pages,
          COLUMNS: tl.constexpr, ALIGNED: tl.constexpr, WORDS: tl.constexpr):  # fmt: skip
    _copy(token_ids, own_token_ids, tokens, own_tokens, 0, WORDS)
    _copy(positions, own_positions, tokens, own_tokens, 0, WORDS)
    _copy(slots, own_slots, tokens, own_tokens, -1, WORDS)
    _copy(context_lens, own_context_lens, sequences, own_sequences, 0, WORDS)
    _copy(query_starts, own_query_starts, sequences + 1, own_sequences + 1, tokens, WORDS)
    _copy(tile_words, own_tile_words, tiles, own_tiles, -1, WORDS)
    _copy(logit_rows, own_logit_rows, rows, own_rows, 0, WORDS)
    # A row of logits a sequence. The last two columns are one, of seeds.
    width = (sequences + ALIGNED - 1) // ALIGNED * ALIGNED
    own_width = (own_sequences + ALIGNED - 1) // ALIGNED * ALIGNED
    for column in tl.static_range(COLUMNS - 2):
        _copy(columns + column * width, own_columns + column * own_width, sequences, own_sequences, 0, WORDS)
    seeds = columns + (COLUMNS - 2) * width
    _copy(seeds, own_columns + (COLUMNS - 2) * own_width, 2 * sequences, 2 * own_sequences, 0, WORDS)
    for row in range(bound(tl.program_id(0)), bound(sequences), bound(tl.num_programs(0))):
        for start in range(0, bound(pages), WORDS):
            words = start + tl.arange(0, WORDS)
            is_page = words < tl.minimum(pages, own_pages)
            taken = tl.load(page_table + row * pages + words, mask=is_page, other=0)
            tl.store(own_page_table + row * own_pages + words, taken, mask=is_page)
