"""Top-n-sigma sampling (Tang et al. 2024, "Top-nσ: Not All Logits Are You Need", arXiv:2411.07641).

The logits of a language model fall into a broad bell of noise and a few that stand out of it. The tokens kept are those with

    logit >= max(logits) - n * std(logits)

over the raw logits. Dividing all of them by a temperature divides the distance and the deviation alike, so the kept set does
not depend on the temperature: a high one flattens the choice among good tokens without letting noise in, which top-p and
min-p, being computed from probabilities, cannot promise.

``top_k``, ``top_p`` and ``min_p`` of a request then narrow the kept tokens further, at the request's temperature.
"""

from __future__ import annotations

import torch

from core.interfaces.compute import SamplingRows
from core.interfaces.randomness import uniform
from core.interfaces.sampler import Sampler


class TopNSigma(Sampler):
    def __init__(self, n_sigma: float) -> None:
        self.n_sigma = n_sigma

    def sample(self, logits: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
        best = logits.argmax(dim=1)
        if rows.all_greedy:
            return best

        def column(values: object) -> torch.Tensor:
            return torch.as_tensor(values, device=logits.device).to(torch.float64).unsqueeze(1)

        exact = logits.double()
        temperature = column(rows.temperature)
        kept = self.kept(exact)
        scaled = (exact - exact.amax(dim=1, keepdim=True)) / temperature.where(temperature > 0, 1.0)
        # What is not kept weighs exp(-inf) = 0, and the search below never stops at a token that adds nothing to the sum.
        weights = scaled.where(kept, -torch.inf).exp()
        if (rows.top_k > 0).any() or (rows.top_p < 1).any() or (rows.min_p > 0).any():
            weights = narrowed(weights, column(rows.top_k), column(rows.top_p), column(rows.min_p))

        sums = weights.cumsum(dim=1)
        total = sums[:, -1:]
        point = column(uniform(rows.seeds, rows.positions)) * total
        point = torch.minimum(point, torch.nextafter(total, torch.zeros_like(total)))
        drawn = torch.searchsorted(sums, point, right=True).squeeze(1)

        usable = (temperature.squeeze(1) > 0) & total.squeeze(1).isfinite() & (total.squeeze(1) > 0)
        return torch.where(usable, drawn.clamp(max=logits.shape[1] - 1), best)

    def kept(self, logits: torch.Tensor) -> torch.Tensor:
        """Which tokens stand out. Banned tokens (-inf) are no part of the deviation."""
        finite = logits.isfinite()
        count = finite.sum(dim=1, keepdim=True).clamp(min=1)
        mean = logits.where(finite, 0.0).sum(dim=1, keepdim=True) / count
        deviation = ((logits - mean).where(finite, 0.0).square().sum(dim=1, keepdim=True) / count).sqrt()
        return finite & (logits >= logits.amax(dim=1, keepdim=True) - self.n_sigma * deviation)


def narrowed(weights: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """The weights with those outside ``min_p``, then ``top_k``, then ``top_p`` set to 0. The best token always stays."""
    weights = weights.where(weights >= min_p * weights.amax(dim=1, keepdim=True), 0.0)
    ordered, ids = weights.sort(dim=1, descending=True, stable=True)
    rank = torch.arange(weights.shape[1], device=weights.device)
    ordered = ordered.where((top_k == 0) | (rank < top_k), 0.0)
    before = ordered.cumsum(dim=1) - ordered
    ordered = ordered.where((before < top_p * ordered.sum(dim=1, keepdim=True)) | (rank == 0), 0.0)
    return torch.zeros_like(weights).scatter(1, ids, ordered)
