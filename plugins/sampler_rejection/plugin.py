"""The rejection sampler's offer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from core.hookspecs import hookimpl
from core.offers import Alias, Context, SamplerOffer

if TYPE_CHECKING:
    from core.interfaces.sampler import Sampler


def create(context: Context) -> Sampler:
    from sampler_rejection.sample import RejectionSampler

    return RejectionSampler()


@hookimpl
def register_samplers() -> Iterable[SamplerOffer]:
    yield SamplerOffer(
        name="rejection",
        summary="temperature, top_k, top_p and min_p, exact; draws and rejects instead of sorting",
        create=create,
        frameworks=frozenset({"torch"}),
        aliases=(Alias("how tokens are drawn", env="FD_SAMPLING_CLASS", value="rejection", chooses="rejection"),),
    )
