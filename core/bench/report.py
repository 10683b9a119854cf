"""What a benchmark was asked to measure, and what it found."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from core.errors import Problem

if TYPE_CHECKING:
    from core.bench.quality import Quality

OURS = "dovetail"
PEERS = ("transformers", "llama.cpp")
ANOTHER = "backend:"  # a peer that is the same composition on the compute backend named behind it


@dataclass(frozen=True)
class Options:
    """``busy_cores``: that something else takes while is measured. ``quality``: a model with a tokenizer, on which a
    quantization is compared with the unpacked weights. ``compose`` are further arguments of the server's command line, so that
    any composition can be measured.
    """

    model: str = "random:ernie-4.5-0.3b"
    dtype: str = "bfloat16"
    threads: int = 0
    batches: tuple[int, ...] = (1, 8)
    input_len: int = 128
    output_len: int = 64
    prefill: int = 512
    repeat: int = 3
    against: tuple[str, ...] = ()
    busy_cores: int = 0
    quality: str = ""
    compose: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """One quantity of one contestant: every repetition's value, and their median."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass(frozen=True)
class Row:
    """One line of the report. ``more_is_better`` says how the ratio is to be read: ours over theirs, or theirs over ours."""

    name: str
    unit: str
    measured: Mapping[str, Measured]
    more_is_better: bool = True

    @property
    def ratios(self) -> dict[str, float]:
        """How many times better ours is than each peer's."""
        if OURS not in self.measured:
            return {}
        ours = self.measured[OURS].median
        peers = {name: measured.median for name, measured in self.measured.items() if name != OURS}
        return {name: ours / theirs if self.more_is_better else theirs / ours for name, theirs in peers.items()}


@dataclass(frozen=True)
class Agreement:
    """Of ours and a peer.

    ``same_tokens``: the share of greedy tokens that are alike, counted in each sequence up to the first that differs.

    ``most_apart``: the greatest difference of a log-probability among the likeliest tokens after the same prompts.
    ``same_first``: on how many of those prompts the likeliest token is the same, of how many.
    """

    same_tokens: float
    most_apart: float
    same_first: tuple[int, int]


@dataclass(frozen=True)
class Unsaid:
    """Why nothing is said about a quantization's quality on a model. ``failed``: it broke, rather than was refused."""

    model: str
    why: str
    remedies: tuple[str, ...]
    failed: bool = False


@dataclass(frozen=True)
class Report:
    """``agreement``: with each peer. ``company``: the greatest difference that neighbours in a step make to the
    log-probability of a likely token of ours; 0 where a request's numbers do not depend on who shares its batch.
    ``ended_by``: what ended the measuring early; ``rows`` then hold what was measured until then, and the rest is missing.
    """

    options: Options
    rows: tuple[Row, ...]
    agreement: Mapping[str, Agreement]
    company: float | None
    versions: Mapping[str, Mapping[str, str]]
    machine: Mapping[str, Any] = field(default_factory=dict)
    quality: Quality | None = None  # of a quantization
    unsaid: Unsaid | None = None
    ended_by: Problem | None = None

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    def as_json(self) -> str:
        content = asdict(self)
        for row, plain in zip(self.rows, content["rows"], strict=True):
            plain["ratios"] = row.ratios
            plain["median"] = {who: measured.median for who, measured in row.measured.items()}
        return json.dumps(content, indent=1)
