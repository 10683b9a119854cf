"""The standard sampler's offer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from core.hookspecs import hookimpl
from core.offers import Context, SamplerOffer

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
    )
