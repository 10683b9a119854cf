"""The parameters of the rows that are drawn, and their random numbers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.interfaces.compute import SamplingRows
from core.interfaces.randomness import uniform

NEAR = 1e-5
"""Relative. Masses summed from float32 weights err by less: nearer to a limit than this, float64 decides."""

FEWEST = 1e-12
"""A ``top_p`` below it, zero included, keeps the likeliest token alone, as this one does."""


@dataclass
class Shares:
    """The uniform numbers of all rows, [R, 1] a round, made when the first row comes to that round."""

    seeds: NDArray[np.uint64]
    positions: NDArray[np.int64]
    device: torch.device
    made: list[Tensor] = field(default_factory=list)

    def of(self, number: int) -> Tensor:
        while len(self.made) <= number:
            column = uniform(self.seeds, self.positions, len(self.made))[:, None]
            self.made.append(torch.from_numpy(column).to(self.device))
        return self.made[number]


@dataclass(frozen=True)
class Limits:
    """Columns [R, 1] on the device, float64 but for ``top_k`` (int64, the whole vocabulary where it is off)."""

    temperature: Tensor
    top_p: Tensor
    min_p: Tensor
    top_k: Tensor
    row: Tensor  # [R]: which of the rows in ``shares``
    shares: Shares
    most: int  # the largest top_k
    has_top_k: bool
    by_mass: bool  # whether any row has a top_p
    by_min: bool  # whether any row has a min_p

    @classmethod
    def of(cls, rows: SamplingRows, which: NDArray[np.int64], vocab: int, device: torch.device) -> Limits:
        top_k, top_p, min_p = rows.top_k[which], rows.top_p[which], rows.min_p[which]
        top_k = np.where((top_k > 0) & (top_k < vocab), top_k, vocab).astype(np.int64)
        columns = np.array([rows.temperature[which], np.maximum(top_p, FEWEST), np.minimum(min_p, 1.0)], np.float64)
        temperature, share, least = torch.from_numpy(columns).to(device)[..., None].unbind()
        return cls(
            temperature=temperature,
            top_p=share,
            min_p=least,
            top_k=torch.from_numpy(top_k).to(device)[:, None],
            row=torch.arange(len(which), device=device),
            shares=Shares(rows.seeds[which], rows.positions[which], device),
            most=int(top_k.max()),
            has_top_k=bool((top_k < vocab).all()),
            by_mass=bool((top_p < 1.0).any()),
            by_min=bool((min_p > 0.0).any()),
        )

    def take(self, which: Tensor | slice) -> Limits:
        names = ("temperature", "top_p", "min_p", "top_k", "row")
        return replace(self, **{name: getattr(self, name)[which] for name in names})

    def share(self, number: int) -> Tensor:
        """[R, 1] in [0, 1): each row's uniform number of that round."""
        return self.shares.of(number)[self.row]
