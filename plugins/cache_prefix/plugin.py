"""Prefix caching: KV pages are known by their contents, shared between requests and kept for those to come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from core.hookspecs import hookimpl
from core.interfaces.rules import Condition, FactRef, Remedy, Rule
from core.offers import Alias, CachePolicyOffer, Context, Section

if TYPE_CHECKING:
    from core.interfaces.cache import CachePolicy


class PrefixSettings(Section, frozen=True):
    cache_outputs: bool = Field(True, description="keep the pages of generated tokens too, not of prompts alone")
    swap_space: float = Field(
        0.0, ge=0.0, description="GiB of host memory that copies of given-up pages may take, as they come; 0 for none"
    )


SWAP_BEYOND_MEMORY = Rule(
    id="swap-space-beyond-memory",
    when=(Condition("settings.cache_prefix.swap_space", ">", FactRef("memory.host_spare_gib")),),
    reason="swap_space is {settings.cache_prefix.swap_space} GiB, and the host has {memory.host_spare_gib} GiB to spare: "
    "no more than these are used",
    remedies=(Remedy("--swap-space {memory.host_spare_gib}", {"cache_prefix.swap_space": FactRef("memory.host_spare_gib")}),),
    severity="warning",
)


SWAP_WITHOUT_CACHE = Rule(
    id="swap-space-without-prefix-caching",
    when=(Condition("settings.cache_prefix.swap_space", ">", 0),),
    reason="swap_space is {settings.cache_prefix.swap_space} GiB for pages that prefix caching "
    "gives up, and prefixes are not cached",
    remedies=(
        Remedy("--enable-prefix-caching", {"cache_policy": "prefix"}),
        Remedy("drop --swap-space", {"cache_prefix.swap_space": 0.0}),
    ),
)


def host_bytes(swap_space: float, facts: Mapping[str, Any]) -> int:
    return int(min(swap_space, facts.get("memory.host_spare_gib", swap_space)) * 2**30)


@hookimpl
def register_cache_policies() -> Iterable[CachePolicyOffer]:
    def create(context: Context) -> CachePolicy:
        from cache_prefix.prefix import PrefixPages

        return PrefixPages(context.section.cache_outputs, host_bytes(context.section.swap_space, context.facts))

    yield CachePolicyOffer(
        name="prefix",
        summary="requests that begin alike share KV pages, which are kept until room is needed",
        create=create,
        settings=PrefixSettings,
        rules=(SWAP_BEYOND_MEMORY,),
        idle_rules=(SWAP_WITHOUT_CACHE,),
        aliases=(
            Alias("share KV pages between requests that begin alike", flag="--enable-prefix-caching", chooses="prefix"),
            Alias("keep the pages of generated tokens too", flag="--enable-output-caching", sets="cache_outputs"),
            Alias("GiB of host memory for pages that were given up", flag="--swap-space", sets="swap_space"),
        ),
    )
