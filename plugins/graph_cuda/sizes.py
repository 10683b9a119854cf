"""Which sizes are recorded, and which recording a step is replayed by."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from core.interfaces.graph import StepShape

LARGEST = 512
"""Sequences. A larger step keeps a device busy for longer than its launches take."""

SMALL_EXACT = (*range(1, 9), 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
FASTDEPLOY = (1, 2, 4, *range(8, 129, 8), *range(144, 257, 16), *range(288, 1025, 32))
LISTS = {"small_exact": SMALL_EXACT, "fastdeploy": FASTDEPLOY}

SHORTEST_PROMPTS = 16
"""Tokens of the smallest recorded step of prompts."""

SHORTEST_MIXED = 32
DOUBLED = 512
"""Tokens of prompts, up to which they double from one recorded mixed step to the next; from there on it is half a step."""
PROMPT = 16
"""Tokens: a mixed step has room for as many prompts as are of this length, and for ``FEWEST_PROMPTS`` at least."""
FEWEST_PROMPTS = 4
BESIDE = (8, 64)
"""Sequences that decode beside prompts: steps are recorded for so many, and for as many as the server runs at once."""


def decode_sizes(given: tuple[int, ...], usual: str, max_num_seqs: int) -> tuple[int, ...]:
    """Ascending; none beyond what the server runs at once, and that number itself where nothing else is asked for."""
    most = min(LARGEST, max_num_seqs)
    if given:
        return tuple(sorted({min(size, max_num_seqs) for size in given}))
    return tuple(sorted({size for size in LISTS[usual] if size < most} | {most}))


def prompt_sizes(longest: int, sequences: Iterable[int], max_num_seqs: int) -> tuple[tuple[int, int], ...]:
    """(tokens, sequences): tokens double up to ``longest``, each for every number of sequences that they suffice for."""
    tokens, sizes = min(SHORTEST_PROMPTS, longest), []
    numbers = sorted({min(number, max_num_seqs) for number in sequences})
    while True:
        sizes += [(tokens, number) for number in numbers if number <= tokens]
        if tokens == longest:
            return tuple(sizes)
        tokens = min(2 * tokens, longest)


def mixed_sizes(longest: int, max_num_seqs: int) -> tuple[tuple[int, int, int], ...]:
    """(tokens of prompts, prompts, sequences that decode): prompts of ``longest`` tokens and fewer, chunks of them too."""
    tokens, lengths = SHORTEST_MIXED, []
    while tokens < longest:
        lengths.append(tokens)
        if tokens >= DOUBLED and tokens + tokens // 2 < longest:
            lengths.append(tokens + tokens // 2)
        tokens *= 2
    beside = sorted({min(number, max_num_seqs) for number in (*BESIDE, max_num_seqs)})
    return tuple(
        (length, min(max(FEWEST_PROMPTS, length // PROMPT), length, max_num_seqs), number)
        for length in (*lengths, longest)
        for number in beside
    )


class Sizes:
    """The shapes that are recorded. A step is padded to the one that has the fewest tokens, then the fewest sequences."""

    def __init__(
        self,
        decode: Iterable[int],
        prompts: Iterable[tuple[int, int]] = (),
        mixed: Iterable[tuple[int, int, int]] = (),
    ) -> None:
        shapes = [StepShape("decode", size, size) for size in decode]
        shapes += [StepShape("prompts", tokens, sequences) for tokens, sequences in prompts]
        for tokens, number, decodes in mixed:
            sequences = number + decodes
            shapes.append(StepShape("mixed", tokens + decodes, sequences, decodes=decodes, rows=sequences))
        self.shapes = tuple(sorted(shapes, key=lambda shape: (shape.kind, shape.tokens, shape.sequences)))
        self.holding = lru_cache(maxsize=4096)(self._holding)  # steps of prompts are of ever other shapes

    def largest(self, kind: str) -> int | None:
        """Tokens; None when no step of this kind is recorded."""
        return max((shape.tokens for shape in self.shapes if shape.kind == kind), default=None)

    def _holding(self, step: StepShape) -> StepShape | None:
        return next((shape for shape in self.shapes if shape.holds(step)), None)
