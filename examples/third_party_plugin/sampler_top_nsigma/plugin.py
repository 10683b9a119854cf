"""Offers the sampler ``top_nsigma``: draws from the tokens whose logits stand within n standard deviations of the best."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from core.hookspecs import hookimpl
from core.interfaces.rules import Condition, Remedy, Rule
from core.offers import Context, SamplerOffer, Section

if TYPE_CHECKING:
    from core.interfaces.sampler import Sampler


class TopNSigmaSettings(Section):
    n_sigma: float = Field(
        1.0, gt=0.0, le=100.0, description="keep tokens within this many standard deviations of the best logit"
    )


KEEPS_NEARLY_ALL = Rule(
    id="top-nsigma-keeps-nearly-all",
    when=(
        Condition("chosen.sampler", "==", "top_nsigma"),
        Condition("settings.sampler_top_nsigma.n_sigma", ">", 5.0),
    ),
    reason="n_sigma {settings.sampler_top_nsigma.n_sigma} keeps nearly every token: the threshold does nothing there",
    remedies=(
        Remedy("--sampler-top-nsigma-n-sigma 1.0", {"sampler_top_nsigma.n_sigma": 1.0}),
        Remedy("use the standard sampler: drop --plugins sampler_top_nsigma", {"plugins-": ["sampler_top_nsigma"]}),
    ),
    severity="warning",
)


def create(context: Context) -> Sampler:
    from sampler_top_nsigma.sample import TopNSigma

    return TopNSigma(context.section.n_sigma)


@hookimpl
def register_samplers() -> Iterable[SamplerOffer]:
    yield SamplerOffer(
        name="top_nsigma",
        summary="tokens within n standard deviations of the best logit, whatever the temperature",
        frameworks=frozenset({"torch"}),
        settings=TopNSigmaSettings,
        rules=(KEEPS_NEARLY_ALL,),
        create=create,
    )
