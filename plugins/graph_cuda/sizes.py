"""Which sizes are recorded, and which recording a step is replayed by."""

from __future__ import annotations

from collections.abc import Iterable

from core.interfaces.graph import StepShape

LARGEST = 512
"""Sequences. A larger step keeps a device busy for longer than its launches take."""

SMALL_EXACT = (*range(1, 9), 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
FASTDEPLOY = (1, 2, 4, *range(8, 129, 8), *range(144, 257, 16), *range(288, 1025, 32))
LISTS = {"small_exact": SMALL_EXACT, "fastdeploy": FASTDEPLOY}

SHORTEST_PROMPTS = 16
"""Tokens of the smallest recorded step of prompts."""


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


class Sizes:
    """The shapes that are recorded. A step is padded to the one that has the fewest tokens, then the fewest sequences."""

    def __init__(self, decode: Iterable[int], prompts: Iterable[tuple[int, int]] = ()) -> None:
        shapes = [StepShape("decode", size, size) for size in decode]
        shapes += [StepShape("prompts", tokens, sequences) for tokens, sequences in prompts]
        self.shapes = tuple(sorted(shapes, key=lambda shape: (shape.kind, shape.tokens, shape.sequences)))
        self._found: dict[StepShape, StepShape | None] = {}

    def largest(self, kind: str) -> int | None:
        """Tokens; None when no step of this kind is recorded."""
        return max((shape.tokens for shape in self.shapes if shape.kind == kind), default=None)

    def holding(self, step: StepShape) -> StepShape | None:
        if step.kind == "mixed":
            return None
        if step not in self._found:
            self._found[step] = next((shape for shape in self.shapes if shape.holds(step)), None)
        return self._found[step]
