"""A graph backend: how a step's operations are launched. Eager runs them; a recording one records them once and replays.

What is replayed runs the same kernels on the same addresses, whatever the step. So a backend that can be recorded has *static
steps*: steps of a given shape whose arrays never move. A graph backend asks for one a shape, records ``forward`` on it, and
from then on, for every step that fits::

    static.fill(step)          the step's contents, on the device; what it leaves over becomes padding
    replay()                   writes K and V into the pages, logits and tokens to where they were when it was recorded
    outcome.first(sequences)   the rows that are no padding

``forward`` ends with the choice of tokens where that needs no host, and a recorded decode step may leave behind it the step
that follows (``StaticStep.advance``): to go on, the host has nothing to send and only replays (``GraphBackend.repeat``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple


class Outcome(NamedTuple):
    """What a step gives, on the device. ``tokens`` None: they are not chosen yet. ``advanced``: see ``StaticStep.advance``."""

    logits: Any  # float32 [R, V]
    tokens: Any = None  # int64 [R]
    advanced: bool = False

    def first(self, rows: int) -> Outcome:
        return Outcome(self.logits[:rows], None if self.tokens is None else self.tokens[:rows], self.advanced)


Forward = Callable[[Any], Outcome]
"""One model step: takes what ``ComputeBackend.upload`` returned."""

StepKind = Literal["decode", "prompts", "mixed"]
"""What may be left out of a step, and so what a recording of it can leave out.

"decode": every sequence computes one token, and its logits are wanted. "prompts": every sequence computes all it has, from its
first token on, and the logits of its last are wanted: attention stays within the step's own tokens, and no page that an earlier
step wrote is read. "mixed": anything else; a recording of it leaves nothing out, and so takes over the other two as well.
"""


@dataclass(frozen=True, slots=True)
class StepShape:
    """How large a step is, real or static. "decode" and "prompts" steps have one row of logits a sequence, in their order.

    ``decodes`` and ``rows`` are of "mixed" steps alone: how many of the sequences compute one token, before all others, and how
    many rows of logits are wanted. ``drawn``: it ends in a sampler's draw, else in the likeliest tokens. A step whose tokens
    are chosen behind it, since their logits are adjusted first, counts among the latter; those it ends with are nobody's.
    """

    kind: StepKind
    tokens: int
    sequences: int
    drawn: bool = False
    decodes: int = 0
    rows: int = 0

    @property
    def logits(self) -> int:
        """Rows of them."""
        return self.rows if self.kind == "mixed" else self.sequences

    @property
    def decoding(self) -> int:
        """Sequences that compute one token, before all others."""
        return self.sequences if self.kind == "decode" else self.decodes

    def holds(self, other: StepShape) -> bool:
        """Whether a step of that shape fits into a static one of this."""
        if self.drawn != other.drawn or self.kind not in (other.kind, "mixed"):
            return False
        own, given = self.decoding, other.decoding
        return (
            own >= given
            and self.tokens - own >= other.tokens - given
            and self.sequences - own >= other.sequences - given
            and self.logits >= other.logits
        )


class StaticStep(ABC):
    """A step of fixed shape that is filled again and again; a backend's operations take it as they take an uploaded one.

    New, it is all padding. A padded token is token 0 at position 0 whose slot is -1: its K and V are written nowhere. A padded
    sequence that decodes has a context of 0 tokens, any other no tokens. In a "mixed" step the padding of those that decode
    lies before the others; rows of logits are in the order of the step that was filled in. What is computed for padding is
    never looked at, may be anything (NaN too), and must not reach another row.

    Operations on a static step launch the same work whatever is in it: they do not wait for the device, do not look at what it
    holds, and size what they launch by ``shape`` and the KV cache alone.
    """

    shape: StepShape

    @abstractmethod
    def fill(self, step: Any) -> None:
        """Take over the contents of an uploaded step whose shape this one holds, and make the rest padding.

        Copies on the device, in the order of the steps; the host waits for nothing. ``step`` is not needed afterwards.
        """

    def advance(self, tokens: Any) -> bool:
        """Make of a "decode" step, behind its work, the one that follows: these tokens, each a place further in the same pages.

        Padding stays what it is. Part of what is recorded, so all on the device. False, and nothing done: it cannot be.
        A sequence that ends or needs another page is not in such a step any more; whatever is left in its place is not run.
        """
        return False


StaticSteps = Callable[[StepShape], "StaticStep | None"]
"""A new static step of this shape, all padding; None for a shape (or from a backend) that cannot be recorded."""


class GraphBackend(ABC):
    """``replayed`` counts the steps that were replayed instead of being launched one operation after the other."""

    replayed: int = 0

    @abstractmethod
    def prepare(self, forward: Forward, static_steps: StaticSteps, draws: bool = False) -> Forward:
        """What the runner calls instead of ``forward`` from now on: same arguments, same values. Called once, when the weights
        are loaded and the KV cache has its memory, before any request: the moment to record what can be recorded.

        The uploaded steps of a backend with static steps have a ``shape: StepShape``. ``draws``: ``forward`` can draw, so that
        steps of a shape that is ``drawn`` are worth a recording of their own; without it they go as those that are not. The
        arrays returned may be written to, and hold until the next step.

        :raises UserError: when this backend's steps cannot be recorded, or there is not enough memory for it.
        """

    def repeat(self) -> Outcome | None:
        """Launch the step that the last one launched has left behind it; None, and nothing done, when there is none."""
        return None

    def describe(self) -> str:
        """One line for people, for the log: what is recorded, the memory it takes, what has been replayed so far."""
        return type(self).__name__

    def close(self) -> None:  # noqa: B027 - most have nothing to give back
        """The engine ends, and nothing is launched any more; the compute backend is closed next."""
