"""How the attention of a step is divided into calls: the same question in every framework.

Tokens that decode are read together, as long as their contexts are alike enough that padding them to the longest costs little.
A prompt is read in blocks of queries, so that a block need not look at the keys behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.interfaces.compute import StepBatch

FREE_PADDING = 512  # tokens: about what one more call costs
GATHERED_TOKENS = 1 << 16  # at most, in one call: bounds the copy of keys and values


@dataclass(frozen=True, slots=True)
class Call:
    """Some queries of one or several sequences, and the pages they look at."""

    rows: slice | NDArray[np.int64]  # of the step's tokens: ``queries`` in a row for each of ``sequences``
    sequences: int
    queries: int  # the last positions of a context; where there are several, each sees one key more than the one before
    pages: NDArray[np.int32]  # [sequences * pages of the longest]
    keys: int  # of the longest
    lengths: NDArray[np.int32]  # [sequences]: how many of the keys are a sequence's own


def calls(batch: StepBatch, page_size: int, block: int) -> Iterator[Call]:
    """Every token of the step once. ``block``: of a prompt's queries, at most."""
    lengths = batch.context_lens[: batch.num_decodes]
    groups = alike(lengths)
    for group in groups:
        own = lengths[group]
        keys = int(own.max())
        pages = batch.page_table[group, : -(-keys // page_size)].reshape(-1)
        yield Call(slice(0, len(group)) if len(groups) == 1 else group, len(group), 1, pages, keys, own)
    for sequence in range(batch.num_decodes, batch.num_sequences):
        first, end = int(batch.query_starts[sequence]), int(batch.query_starts[sequence + 1])
        behind = int(batch.context_lens[sequence]) - end  # what to add to a row of the step for its position
        for start in range(first, end, block):
            stop = min(start + block, end)
            keys = stop + behind
            pages = batch.page_table[sequence, : -(-keys // page_size)]
            yield Call(slice(start, stop), 1, stop - start, pages, keys, np.array([keys], np.int32))


def alike(lengths: NDArray[np.int32]) -> list[NDArray[np.int64]]:
    """Indices of ``lengths`` in groups that may be padded to their longest; in order when one group will do."""
    if not len(lengths):
        return []
    order = np.argsort(-lengths, kind="stable")
    groups: list[NDArray[np.int64]] = []
    first, used, padding = 0, 0, 0
    for index, length in enumerate(lengths[order].tolist()):
        longest = int(lengths[order[first]])
        padding += longest - length
        used += length
        if padding > FREE_PADDING + used // 4 or longest * (index - first + 1) > max(longest, GATHERED_TOKENS):
            groups.append(order[first:index])
            first, used, padding = index, length, 0
    if not groups:
        return [np.arange(len(lengths))]
    return [*groups, order[first:]]
