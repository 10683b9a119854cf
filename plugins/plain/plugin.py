"""The plain way for three kinds: run each step as it is, share no pages, compute each prompt in one piece."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from core.hookspecs import hookimpl
from core.offers import Alias, CachePolicyOffer, Context, GraphBackendOffer, SchedulerOffer

if TYPE_CHECKING:
    from core.interfaces.cache import CachePolicy
    from core.interfaces.graph import GraphBackend
    from core.interfaces.scheduler import SchedulingPolicy


@hookimpl
def register_graph_backends() -> Iterable[GraphBackendOffer]:
    def create(context: Context) -> GraphBackend:
        from plain.eager import Eager

        return Eager()

    yield GraphBackendOffer(
        name="eager",
        summary="runs every operation of a step one after the other",
        create=create,
        aliases=(Alias("run steps eagerly, record none", flag="--enforce-eager", chooses="eager"),),
    )


@hookimpl
def register_cache_policies() -> Iterable[CachePolicyOffer]:
    def create(context: Context) -> CachePolicy:
        from plain.private import PrivatePages

        return PrivatePages()

    yield CachePolicyOffer(
        name="private",
        summary="every request has its own KV pages and gives them back when it ends",
        create=create,
        aliases=(Alias("share no KV pages between requests", flag="--no-enable-prefix-caching", chooses="private"),),
    )


@hookimpl
def register_schedulers() -> Iterable[SchedulerOffer]:
    def create(context: Context) -> SchedulingPolicy:
        from plain.whole import WholePrompts

        return WholePrompts()

    yield SchedulerOffer(
        name="whole",
        summary="computes each prompt in one step, in order of priority and arrival",
        splits_prompts=False,
        create=create,
        aliases=(Alias("do not split prompts", env="FD_DISABLE_CHUNKED_PREFILL", value="1", chooses="whole"),),
    )
