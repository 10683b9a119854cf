"""Recording and replaying steps. What is particular to CUDA is behind ``Recorder``: tests put one without a device there."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from core.errors import UserError
from core.interfaces.graph import Forward, GraphBackend, Outcome, StaticStep, StaticSteps, StepShape
from graph_cuda.sizes import Sizes

log = logging.getLogger("dovetail.engine")

Launch = Callable[[], Outcome]
KINDS = {
    "decode": "sizes of decode steps",
    "prompts": "sizes of prompts, in tokens by sequences",
    "mixed": "sizes of prompts beside decodes, in tokens by sequences and decodes",
}


class Recorder(Protocol):
    """A device's capture API, as far as it is needed here."""

    def pool(self) -> Any:
        """Memory that recordings may share: only one of them runs at a time."""

    def warm(self, launch: Launch, times: int) -> None:
        """Run it without recording, so that kernels are compiled and workspaces taken before."""

    def record(self, launch: Launch, pool: Any) -> tuple[Callable[[], None], Outcome]:
        """What replays ``launch``, and what it returned: arrays whose contents each replay writes anew.

        :raises MemoryError: when there is not enough memory for it.
        """

    def taken(self) -> int:
        """Bytes of the device's memory in use, nothing kept in reserve counted."""


@dataclass(frozen=True, slots=True)
class Recording:
    static: StaticStep
    replay: Callable[[], None]
    outcome: Outcome  # of as many rows as the static step has


class CudaGraphs(GraphBackend):
    """Each size is recorded once: all of them by ``prepare``, or each when its first step comes (``lazily``)."""

    def __init__(self, sizes: Sizes, recorder: Recorder, *, lazily: bool, warmups: int, shared_pool: bool) -> None:
        self.recorder = recorder
        self._sizes = sizes
        self._lazily = lazily
        self._warmups = warmups
        self._shared_pool = shared_pool
        self._pool: Any = None
        self._recorded: dict[StepShape, Recording] = {}
        self._refused: set[StepShape] = set()  # for want of memory
        self._bytes = 0
        self._seconds = 0.0
        self._eager: Counter[str] = Counter()  # steps by the reason
        self._last: tuple[Recording, int] | None = None  # what was replayed last, for how many rows of logits

    def prepare(self, forward: Forward, static_steps: StaticSteps, draws: bool = False) -> Forward:
        self._forward, self._static_steps, self._draws = forward, static_steps, draws
        if not self._lazily:
            self._record_all()
        elif static_steps(self._sizes.shapes[0]) is None:
            raise _not_recordable()
        return self._step

    def repeat(self) -> Outcome | None:
        if self._last is None or not self._last[0].outcome.advanced:
            return None
        return self._replay(*self._last)

    def _step(self, step: Any) -> Outcome:
        shape: StepShape = step.shape if self._draws else replace(step.shape, drawn=False)
        self._last = None
        recording = self._recording(shape)
        if recording is None:
            return self._forward(step)
        recording.static.fill(step)
        self._last = recording, shape.logits
        return self._replay(*self._last)

    def _replay(self, recording: Recording, rows: int) -> Outcome:
        recording.replay()
        self.replayed += 1
        return recording.outcome.first(rows)

    def _recording(self, step: StepShape) -> Recording | None:
        size = self._sizes.holding(replace(step, drawn=False))
        if size is None:
            self._eager[self._why_eager(step)] += 1
            return None
        shape = replace(size, drawn=step.drawn)
        found = self._recorded.get(shape)
        if found is None and shape not in self._refused:  # only when lazily
            try:
                found = self._record(shape)
            except MemoryError as error:
                self._refused.add(shape)
                log.warning(
                    "steps of %d tokens are run eagerly from now on, since recording one failed: %s", shape.tokens, error
                )
        if found is None:
            self._eager["for want of memory"] += 1
        return found

    def _why_eager(self, step: StepShape) -> str:
        mixed = self._sizes.largest("mixed") is not None
        if step.kind == "decode" and not mixed:
            return f"of more than {self._sizes.largest('decode')} sequences"
        if step.logits > step.sequences:
            return "that want several rows of logits a sequence"
        if mixed:
            return "of more or longer prompts"
        if self._sizes.largest("prompts") is None:
            return "that do more than decode"
        return "of prompts beside decodes" if step.kind == "mixed" else "of more or longer prompts"

    def _record_all(self) -> None:
        # What the largest has taken of the pool, the others use again.
        shapes = [replace(shape, drawn=drawn) for shape in reversed(self._sizes.shapes) for drawn in self._endings]
        for shape in shapes:
            try:
                self._record(shape)
            except MemoryError as error:
                raise UserError.of(
                    f"there is not enough memory to record a step of {shape.tokens} tokens, after {len(self._recorded)} of "
                    f"{len(shapes)} steps: {error}",
                    "graph_cuda.capture_sizes",
                    "lower --gpu-memory-utilization: KV pages leave more memory then",
                    "record fewer sizes: --graph-cuda-capture-sizes 1,2,4,8, or a lower --max-num-seqs",
                    "run steps eagerly: drop --use-cudagraph",
                ) from error

    @property
    def _endings(self) -> tuple[bool, ...]:
        """Of each size: the step that ends in the likeliest tokens, and the one that ends in drawn ones."""
        return (False, True) if self._draws else (False,)

    def _record(self, shape: StepShape) -> Recording:
        began, before = time.monotonic(), self.recorder.taken()
        static = self._static_steps(shape)
        if static is None:
            raise _not_recordable()
        if self._pool is None or not self._shared_pool:
            self._pool = self.recorder.pool()

        def launch() -> Outcome:
            return self._forward(static)

        self.recorder.warm(launch, self._warmups)
        recording = Recording(static, *self.recorder.record(launch, self._pool))
        self._recorded[shape] = recording
        self._bytes += max(0, self.recorder.taken() - before)
        self._seconds += time.monotonic() - began
        return recording

    def describe(self) -> str:
        recorded: Counter[tuple[str, bool]] = Counter((shape.kind, shape.drawn) for shape in self._recorded)
        kinds = [
            f"{recorded[kind, False]} of {len(sizes)} {name} ({_listed(sizes)})"
            for kind, name in KINDS.items()
            if (sizes := [shape for shape in self._sizes.shapes if shape.kind == kind])
        ]
        line = f"CUDA graphs, recorded {'when first wanted' if self._lazily else 'at the start'}: {', '.join(kinds)}"
        line += f", {sum(shape.drawn for shape in self._recorded)} of these for drawn tokens too" if self._draws else ""
        line += f"; {self._bytes / 2**20:.0f} MiB, {self._seconds:.1f} s; {self.replayed} steps replayed"
        total = sum(self._eager.values())
        reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(self._eager.items()))
        return f"{line}, {total} run eagerly{f' ({reasons})' if reasons else ''}"

    def close(self) -> None:
        log.info("%s", self.describe())
        self._last = None
        self._recorded.clear()
        self._pool = None


def _listed(shapes: list[StepShape]) -> str:
    return " ".join(_written(shape) for shape in shapes)


def _written(shape: StepShape) -> str:
    if shape.kind == "decode":
        return str(shape.tokens)
    prompts = f"{shape.tokens - shape.decodes}x{shape.sequences - shape.decodes}"
    return f"{prompts}+{shape.decodes}" if shape.kind == "mixed" else prompts


def _not_recordable() -> UserError:
    return UserError.of(
        "the steps of this compute backend cannot be recorded: it gives no static steps",
        "graph",
        "run steps eagerly: drop --use-cudagraph",
        "choose a compute backend whose steps can be recorded: on CUDA, torch with Triton installed",
    )
