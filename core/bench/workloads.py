"""What ``core.bench.gpu`` asks of an engine, what others were seen to reach at it, and what a device allows.

The others' figures are those of one H200, this model's shape in bfloat16 with random weights, taken for this project on
2026-11-23: vLLM 0.26.0, and SGLang 0.5.13, which ran it as a Llama of the same shape.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from core.interfaces.model import DecoderSpec, Role
from core.interfaces.request import SamplingParams

GREEDY = {"temperature": 0.0}
NUCLEUS = {"temperature": 0.8, "top_p": 0.95}
Job = tuple[list[int], SamplingParams]


@dataclass(frozen=True)
class Workload:
    """``counts_prompts``: its figure is of all tokens, else of those that came out. ``peers``: vLLM's and SGLang's."""

    name: str
    jobs: tuple[Job, ...]
    peers: tuple[int, int] | None = None
    counts_prompts: bool = False

    @property
    def prompt_tokens(self) -> int:
        return sum(len(prompt) for prompt, _ in self.jobs)

    @property
    def output_tokens(self) -> int:
        return sum(params.max_tokens or 0 for _, params in self.jobs)

    @property
    def counted(self) -> int:
        return self.output_tokens + (self.prompt_tokens if self.counts_prompts else 0)


SWEEP_PEERS = {
    ("greedy", 1): (632, 938),
    ("greedy", 8): (4_607, 7_728),
    ("greedy", 32): (15_344, 29_478),
    ("greedy", 128): (34_040, 84_773),
    ("greedy", 256): (53_108, 121_773),
    ("greedy", 512): (57_196, 152_441),
    ("nucleus", 1): (430, 898),
    ("nucleus", 256): (45_574, 102_297),
    ("nucleus", 512): (47_582, 130_917),
}


def sweep(kind: str, batch: int, vocab: int, prompt: int = 128, output: int = 256) -> Workload:
    """So many requests at once."""
    draw = random.Random(batch)
    how = GREEDY if kind == "greedy" else NUCLEUS
    params = SamplingParams(max_tokens=output, ignore_eos=True, seed=1, **how)  # type: ignore[arg-type]
    jobs = tuple((_ids(draw, prompt, vocab), params) for _ in range(batch))
    full = (prompt, output) == (128, 256)
    return Workload(f"{batch}, {kind}", jobs, SWEEP_PEERS.get((kind, batch)) if full else None)


def nano256(vocab: int, scale: float = 1.0) -> Workload:
    """256 prompts of 100 to 1,024 tokens, as many out, temperature 0.6."""
    draw = random.Random(0)
    longest = max(2, int(1024 * scale))
    shortest = max(1, int(100 * scale))
    number = max(2, int(256 * scale))
    prompts = [_ids(draw, draw.randint(shortest, longest), vocab) for _ in range(number)]
    outputs = [draw.randint(shortest, longest) for _ in range(number)]
    params = [SamplingParams(max_tokens=output, temperature=0.6, ignore_eos=True) for output in outputs]
    return Workload("nano256", tuple(zip(prompts, params, strict=True)), (31_455, 54_458) if scale == 1.0 else None)


def thousand(vocab: int, scale: float = 1.0) -> Workload:
    """1,000 prompts of 1,024 tokens, 128 out, nucleus sampling."""
    draw = random.Random(1)
    params = SamplingParams(max_tokens=max(2, int(128 * scale)), ignore_eos=True, **NUCLEUS)  # type: ignore[arg-type]
    jobs = tuple((_ids(draw, max(2, int(1024 * scale)), vocab), params) for _ in range(max(2, int(1000 * scale))))
    return Workload("1000x1024/128", jobs, (320_486, 356_823) if scale == 1.0 else None, counts_prompts=True)


def _ids(draw: random.Random, number: int, vocab: int) -> list[int]:
    return [draw.randrange(vocab) for _ in range(number)]


@dataclass(frozen=True)
class Ceilings:
    """What the device does of one thing alone."""

    bytes_per_second: float  # read
    flops: float  # products of large matrices in the model's dtype


def floor_seconds(
    workload: Workload, spec: DecoderSpec, weight_bytes: int, kv_bytes: int, ceilings: Ceilings, together: int
) -> float:
    """Prompts at the speed of products, decodes at that of reading: all weights once a step, each token's keys and values.

    ``together``: how many requests run at once; what is read in a step of theirs is read for all of them.
    """
    roles: tuple[Role, ...] = ("qkv", "o", "gate_up", "down")
    layer = sum(math.prod(spec.shape(role)) for role in roles)
    products = 2.0 * spec.num_layers * layer * workload.prompt_tokens
    steps = _steps([params.max_tokens or 0 for _, params in workload.jobs], together)
    read = steps * weight_bytes + sum(_contexts(job) for job in workload.jobs) * kv_bytes
    return products / ceilings.flops + read / ceilings.bytes_per_second


def _contexts(job: Job) -> int:
    """Tokens whose keys and values are read by all the decode steps of a request."""
    prompt, params = job
    steps = (params.max_tokens or 1) - 1
    return steps * len(prompt) + steps * (steps + 1) // 2


def _steps(outputs: Sequence[int], together: int) -> int:
    """The fewest decode steps, when a place that becomes free is taken at once."""
    ends = [0] * min(together, len(outputs))
    for output in outputs:
        ends.sort()
        ends[0] += output - 1
    return max(ends)
