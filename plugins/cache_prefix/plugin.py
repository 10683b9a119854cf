"""Prefix caching: KV pages are known by their contents, shared between requests and kept for those to come."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from core.hookspecs import hookimpl
from core.offers import Alias, CachePolicyOffer, Context, Section

if TYPE_CHECKING:
    from core.interfaces.cache import CachePolicy


class PrefixSettings(Section, frozen=True):
    cache_outputs: bool = Field(True, description="keep the pages of generated tokens too, not of prompts alone")


@hookimpl
def register_cache_policies() -> Iterable[CachePolicyOffer]:
    def create(context: Context) -> CachePolicy:
        from cache_prefix.prefix import PrefixPages

        return PrefixPages(keeps_outputs=context.section.cache_outputs)

    yield CachePolicyOffer(
        name="prefix",
        summary="requests that begin alike share KV pages, which are kept until room is needed",
        create=create,
        settings=PrefixSettings,
        aliases=(
            Alias("share KV pages between requests that begin alike", flag="--enable-prefix-caching", chooses="prefix"),
            Alias("keep the pages of generated tokens too", flag="--enable-output-caching", sets="cache_outputs"),
        ),
    )
