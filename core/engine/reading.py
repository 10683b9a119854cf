"""Prompts that are read and not gone on with: for their hidden states, and for how likely each of their tokens is.

They are computed between two steps, on pages of their own that nobody shares and that are given back at once.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np

from core.engine.block_manager import BlockManager
from core.errors import RequestError
from core.interfaces.compute import SamplingRows, StepBatch

LOGIT_ROWS = 128  # whose logits are in memory at the same time


def chunks(tokens: Sequence[int], blocks: BlockManager, size: int, *, every: bool) -> Generator[StepBatch, None, None]:
    """The steps that compute a prompt, ``size`` tokens each. ``every`` token's row is wanted, or the last one's alone.

    :raises RequestError: when its pages cannot be had now.
    """
    ids = np.array(tokens, np.int32)
    page_size = blocks.pool.page_size
    pages = blocks.lend(-(-len(ids) // page_size))
    if pages is None:
        raise RequestError("no memory is free for this prompt now: try again later", code="queue_full", status=429)
    try:
        for begin in range(0, len(ids), size):
            end = min(begin + size, len(ids))
            positions = np.arange(begin, end, dtype=np.int32)
            if every:
                wanted = np.arange(end - begin, dtype=np.int64)
            else:
                wanted = np.array([end - begin - 1] if end == len(ids) else [], np.int64)
            yield StepBatch(
                token_ids=ids[begin:end],
                positions=positions,
                slots=pages[positions // page_size].astype(np.int64) * page_size + positions % page_size,
                query_starts=np.array([0, end - begin], np.int32),
                context_lens=np.array([end], np.int32),
                page_table=pages[None, : -(-end // page_size)].astype(np.int32),
                logit_rows=wanted,
                num_decodes=0,
                sampling=_unsampled(len(wanted)),
            )
    finally:
        blocks.take_back(pages)


def _unsampled(rows: int) -> SamplingRows:
    floats, ints = np.zeros(rows, np.float32), np.zeros(rows, np.int32)
    return SamplingRows(
        temperature=floats,
        top_k=ints,
        top_p=np.ones(rows, np.float32),
        min_p=floats,
        seeds=np.zeros(rows, np.uint64),
        positions=np.zeros(rows, np.int64),
        logprobs=np.full(rows, -1, np.int32),
        all_greedy=True,
    )
