# ruff: noqa: ANN001, ANN202, N803 - a kernel's arguments are pointers and scalars of Triton, its constants are in capitals
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,misc"
"""Steps that are recorded once and filled again and again: one kernel takes over another step's contents, and pads the rest."""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

from core.compute.torch_backend.triton.arithmetic import bound
from core.compute.torch_backend.triton.step import Layout, Step, aligned
from core.interfaces.graph import StaticStep, StepShape

PROGRAMS = 16
WORDS = 256  # that a program copies at a time


class TritonStaticStep(Step, StaticStep):
    def __init__(self, shape: StepShape, pages: int, block: int, device: torch.device) -> None:
        """``pages``: of the longest context; ``block``: queries to a tile."""
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
            step.token_ids, step.positions, step.slots, step.context_lens, step.query_starts, step.tiles, rows, step.page_table,
            self.token_ids, self.positions, self.slots, self.context_lens, self.query_starts, self.tiles,
            self.context_lens if self.logit_rows is None else self.logit_rows, self.page_table,
            other.tokens, other.sequences, 2 * other.tiles, other.rows or 0, other.pages,
            own.tokens, own.sequences, 2 * own.tiles, own.rows or 0, own.pages,
            WORDS=WORDS,
            num_warps=2,
        )  # fmt: skip


@triton.jit
def _copy(source, target, length, size, padding, WORDS: tl.constexpr):
    """``length`` words, and padding behind them until there are ``size``."""
    for start in range(bound(tl.program_id(0) * WORDS), bound(size), bound(tl.num_programs(0) * WORDS)):
        words = start + tl.arange(0, WORDS)
        taken = tl.load(source + words, mask=words < length, other=0)
        tl.store(target + words, tl.where(words < length, taken, padding), mask=words < size)


SIZES = ["tokens", "sequences", "tiles", "rows", "pages", "own_tokens", "own_sequences", "own_tiles", "own_rows", "own_pages"]


@triton.jit(do_not_specialize=SIZES)
def _fill(token_ids, positions, slots, context_lens, query_starts, tile_words, logit_rows, page_table,
          own_token_ids, own_positions, own_slots, own_context_lens, own_query_starts, own_tile_words, own_logit_rows,
          own_page_table,
          tokens, sequences, tiles, rows, pages, own_tokens, own_sequences, own_tiles, own_rows, own_pages,
          WORDS: tl.constexpr):  # fmt: skip
    _copy(token_ids, own_token_ids, tokens, own_tokens, 0, WORDS)
    _copy(positions, own_positions, tokens, own_tokens, 0, WORDS)
    _copy(slots, own_slots, tokens, own_tokens, -1, WORDS)
    _copy(context_lens, own_context_lens, sequences, own_sequences, 0, WORDS)
    _copy(query_starts, own_query_starts, sequences + 1, own_sequences + 1, tokens, WORDS)
    _copy(tile_words, own_tile_words, tiles, own_tiles, -1, WORDS)
    _copy(logit_rows, own_logit_rows, rows, own_rows, 0, WORDS)
    for row in range(bound(tl.program_id(0)), bound(sequences), bound(tl.num_programs(0))):
        for start in range(0, bound(pages), WORDS):
            words = start + tl.arange(0, WORDS)
            is_page = words < tl.minimum(pages, own_pages)
            taken = tl.load(page_table + row * pages + words, mask=is_page, other=0)
            tl.store(own_page_table + row * own_pages + words, taken, mask=is_page)
