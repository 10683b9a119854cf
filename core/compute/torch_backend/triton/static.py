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
        decodes, prompts = shape.decoding, shape.sequences - shape.decoding
        tiles = (shape.tokens - decodes) // block + prompts
        rows = None if shape.kind == "decode" else shape.logits
        super().__init__(shape, Layout(shape.tokens, decodes, prompts, tiles, aligned(pages), rows), device)
        self.buffer.zero_()
        self.slots.fill_(-1)
        self.tiles.fill_(-1)

    def fill(self, step: Step) -> None:
        """A padded sequence begins where the tokens end, and so has none; its context is empty."""
        own, other = self.layout, step.layout
        rows = step.query_starts if step.logit_rows is None else step.logit_rows  # of every token: there each is a sequence
        _fill[(PROGRAMS,)](
            step.token_ids, step.positions, step.slots, step.context_lens, step.query_starts, step.tiles, rows, step.columns,
            step.page_table,
            self.token_ids, self.positions, self.slots, self.context_lens, self.query_starts, self.tiles,
            self.context_lens if self.logit_rows is None else self.logit_rows, self.columns, self.page_table,
            other.decodes, other.tokens, other.sequences, 2 * other.tiles, other.logits, other.pages,
            own.decodes, own.tokens, own.sequences, 2 * own.tiles, own.logits, own.pages,
            HELD_ROWS=own.rows is not None,
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
def _copy(source, target, decodes, length, own_decodes, size, padding, WORDS: tl.constexpr):
    """Words of what decodes, and padding up to ``own_decodes``; those of the rest, and padding up to ``size``."""
    for start in range(bound(tl.program_id(0) * WORDS), bound(size), bound(tl.num_programs(0) * WORDS)):
        words = start + tl.arange(0, WORDS)
        is_rest = words >= own_decodes
        given = tl.where(is_rest, words - own_decodes + decodes, words)
        is_given = given < tl.where(is_rest, length, decodes)
        taken = tl.load(source + given, mask=is_given, other=0)
        tl.store(target + words, tl.where(is_given, taken, padding), mask=words < size)


@triton.jit
def _copy_places(source, target, length, size, padding, decodes, further, WORDS: tl.constexpr):
    """Places of tokens or of sequences: those behind ``decodes`` lie so much ``further`` behind."""
    for start in range(bound(tl.program_id(0) * WORDS), bound(size), bound(tl.num_programs(0) * WORDS)):
        words = start + tl.arange(0, WORDS)
        places = tl.load(source + words, mask=words < length, other=0)
        places += tl.where(places >= decodes, further, 0)
        tl.store(target + words, tl.where(words < length, places, padding), mask=words < size)


@triton.jit
def _copy_starts(source, target, decodes, sequences, tokens, own_decodes, own_sequences, WORDS: tl.constexpr):
    """A padded sequence that decodes has its token; another begins where the tokens end."""
    for start in range(bound(tl.program_id(0) * WORDS), bound(own_sequences + 1), bound(tl.num_programs(0) * WORDS)):
        words = start + tl.arange(0, WORDS)
        given = words - own_decodes + decodes
        is_given = (words >= own_decodes) & (given <= sequences)
        starts = tl.load(source + given, mask=is_given, other=tokens) + own_decodes - decodes
        tl.store(target + words, tl.where(words < own_decodes, words, starts), mask=words <= own_sequences)


SIZES = [
    *("decodes", "tokens", "sequences", "tiles", "rows", "pages"),
    *("own_decodes", "own_tokens", "own_sequences", "own_tiles", "own_rows", "own_pages"),
]


@triton.jit(do_not_specialize=SIZES)
def _fill(token_ids, positions, slots, context_lens, query_starts, tile_words, logit_rows, columns, page_table,
          own_token_ids, own_positions, own_slots, own_context_lens, own_query_starts, own_tile_words, own_logit_rows,
          own_columns, own_page_table,
          decodes, tokens, sequences, tiles, rows, pages,
          own_decodes, own_tokens, own_sequences, own_tiles, own_rows, own_pages,
          HELD_ROWS: tl.constexpr, COLUMNS: tl.constexpr, ALIGNED: tl.constexpr, WORDS: tl.constexpr):  # fmt: skip
    """What decodes, padding, the rest, padding: tokens and sequences alike. Rows of logits are behind each other."""
    _copy(token_ids, own_token_ids, decodes, tokens, own_decodes, own_tokens, 0, WORDS)
    _copy(positions, own_positions, decodes, tokens, own_decodes, own_tokens, 0, WORDS)
    _copy(slots, own_slots, decodes, tokens, own_decodes, own_tokens, -1, WORDS)
    _copy(context_lens, own_context_lens, decodes, sequences, own_decodes, own_sequences, 0, WORDS)
    _copy_starts(query_starts, own_query_starts, decodes, sequences, tokens, own_decodes, own_sequences, WORDS)
    further = own_decodes - decodes
    _copy_places(tile_words, own_tile_words, tiles, own_tiles, -1, decodes, further, WORDS)
    if HELD_ROWS:
        _copy_places(logit_rows, own_logit_rows, rows, own_rows, 0, decodes, further, WORDS)
    # The last two columns are one, of seeds.
    width = (rows + ALIGNED - 1) // ALIGNED * ALIGNED
    own_width = (own_rows + ALIGNED - 1) // ALIGNED * ALIGNED
    for column in tl.static_range(COLUMNS - 2):
        _copy(columns + column * width, own_columns + column * own_width, 0, rows, 0, own_rows, 0, WORDS)
    seeds = columns + (COLUMNS - 2) * width
    _copy(seeds, own_columns + (COLUMNS - 2) * own_width, 0, 2 * rows, 0, 2 * own_rows, 0, WORDS)
    for row in range(bound(tl.program_id(0)), bound(sequences), bound(tl.num_programs(0))):
        own_row = row + tl.where(row >= decodes, further, 0)
        for start in range(0, bound(pages), WORDS):
            words = start + tl.arange(0, WORDS)
            is_page = words < tl.minimum(pages, own_pages)
            taken = tl.load(page_table + row * pages + words, mask=is_page, other=0)
            tl.store(own_page_table + own_row * own_pages + words, taken, mask=is_page)
