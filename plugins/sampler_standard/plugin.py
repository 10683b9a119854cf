"""The standard sampler's offer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from core.hookspecs import hookimpl
from core.offers import Alias, Context, SamplerOffer

if TYPE_CHECKING:
    from core.interfaces.sampler import Sampler


def create(context: Context) -> Sampler:
    from sampler_standard.sample import StandardSampler

    return StandardSampler()


@hookimpl
def register_samplers() -> Iterable[SamplerOffer]:
    yield SamplerOffer(
        name="standard",
        summary="temperature, top_k, top_p and min_p, exact; draws by inverse CDF",
        create=create,
        frameworks=frozenset({"torch"}),
        # Three ways to draw from one distribution, or nearly: "base" favours the likelier tokens at the edge of top_p.
        aliases=tuple(
            Alias("how tokens are drawn", env="FD_SAMPLING_CLASS", value=value, chooses="standard")
            for value in ("base", "base_non_truncated", "air")
        ),
    )
