"""How fast samplers are beside each other: ``python plugins/sampler_rejection/tests/speed.py``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from importlib.metadata import entry_points
from statistics import median
from typing import Any

import torch

from core.interfaces.sampler import Sampler
from core.offers import Context, SamplerOffer
from core.testing.inputs import sampling_rows

LIMITS: tuple[Mapping[str, Any], ...] = (
    {"top_p": 0.9},
    {"top_p": 0.5},
    {"top_k": 50},
    {"top_k": 500},
    {"top_k": 50, "top_p": 0.9},
    {"min_p": 0.05},
    {"top_p": 0.8, "min_p": 0.02},
    {},
)


def sampler(plugin: str) -> Sampler:
    """The first sampler that an installed plugin offers."""
    (point,) = entry_points(group="dovetail", name=plugin)
    offer: SamplerOffer = next(iter(point.load().register_samplers()))
    return offer.create(Context(offer.settings() if offer.settings else None, {}, {}))


def logits_of(shape: str, rows: int, vocab: int) -> torch.Tensor:
    """Flat: no token stands out. Peaked: a few hold nearly all the mass, as a language model's do."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, vocab, generator=random)
    if shape == "peaked":
        logits *= 2
        logits[:, torch.randperm(vocab, generator=random)[:20]] += 14
    return logits


def seconds(tested: Sampler, logits: torch.Tensor, limits: Mapping[str, Any], repeats: int) -> float:
    """CPU time of one call, the median of some: another program's work on the same cores does not count."""
    rows = sampling_rows(len(logits), temperature=0.8, seeds=range(len(logits)), **limits)
    tested.sample(logits, rows)
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        tested.sample(logits, rows)
        taken.append(time.process_time() - start)
    return median(taken)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plugin", default="sampler_rejection", help="whose sampler is measured")
    parser.add_argument("--against", default="sampler_standard", help="whose sampler it is compared with")
    parser.add_argument("--vocab", type=int, default=103_424)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    tested, against = sampler(given.plugin), sampler(given.against)
    out = sys.stdout
    out.write(f"ms of CPU time a call, {given.threads} thread(s), vocabulary {given.vocab:,}\n")
    out.write(f"{'logits':8}{'limits':32}{'batch':>6}{given.plugin:>20}{given.against:>20}{'ratio':>8}\n")
    for shape in ("peaked", "flat"):
        for limits in LIMITS:
            for batch in given.batch:
                logits = logits_of(shape, batch, given.vocab)
                own = seconds(tested, logits, limits, given.repeats) * 1e3
                other = seconds(against, logits, limits, 1 if batch > 16 else given.repeats) * 1e3
                name = " ".join(f"{key}={value}" for key, value in limits.items()) or "none"
                out.write(f"{shape:8}{name:32}{batch:6}{own:20.2f}{other:20.2f}{other / own:7.1f}x\n")
                out.flush()


if __name__ == "__main__":
    main()
