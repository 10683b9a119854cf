"""Which contexts are read together by one call of attention: the same question in every framework."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FREE_PADDING = 512  # tokens: about what one more call costs
GATHERED_TOKENS = 1 << 16  # at most, in one call: bounds the copy of keys and values


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
