"""Tensor parallelism: several processes hold a part of every weight each, and add up what they compute."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from core.hookspecs import hookimpl
from core.interfaces.rules import Condition, FactRef, Remedy, Rule
from core.offers import Alias, Context, ParallelismOffer, Section

if TYPE_CHECKING:
    from core.interfaces.parallel import Collective


class TensorParallelSettings(Section, frozen=True):
    size: int = Field(
        1,
        ge=1,
        le=64,
        description="processes that hold a part of every weight each: on a CUDA device each, or on a part of the CPU",
    )


FEWER = Remedy("--tensor-parallel-size {parallel.fitting}", {"tensor_parallel.size": FactRef("parallel.fitting")})
RULES = (
    Rule(
        id="tensor-parallel-heads",
        when=(Condition("parallel.ranks", "not divides", FactRef("model.heads")),),
        reason="{parallel.ranks} ranks cannot have the same number of the {model.heads} query heads of {model.name}",
        remedies=(FEWER,),
    ),
    Rule(
        id="tensor-parallel-kv-heads",
        when=(
            Condition("parallel.ranks", "not divides", FactRef("model.kv_heads")),
            Condition("model.kv_heads", "not divides", FactRef("parallel.ranks")),
        ),
        reason="{parallel.ranks} ranks can neither share nor each repeat the {model.kv_heads} key/value heads of {model.name}",
        remedies=(FEWER,),
    ),
    Rule(
        id="tensor-parallel-feed-forward",
        when=(Condition("parallel.ranks", "not divides", FactRef("model.intermediate")),),
        reason="{parallel.ranks} ranks cannot have equal parts of the feed-forward width {model.intermediate} of {model.name}",
        remedies=(FEWER,),
    ),
    Rule(
        id="tensor-parallel-devices",
        when=(
            Condition("device.kind", "==", "cuda"),
            Condition("device.count", ">", 0),
            Condition("parallel.ranks", ">", FactRef("device.count")),
        ),
        reason="each of {parallel.ranks} ranks needs a CUDA device, and this machine shows {device.count}",
        remedies=(FEWER, Remedy("check CUDA_VISIBLE_DEVICES")),
    ),
    Rule(
        id="tensor-parallel-cores",
        when=(Condition("device.kind", "==", "cpu"), Condition("parallel.ranks", ">", FactRef("cpu.cores"))),
        reason="{parallel.ranks} ranks share {cpu.cores} physical cores: they wait for each other more than they compute",
        remedies=(Remedy("--tensor-parallel-size 1: one process uses all cores as well", {"tensor_parallel.size": 1}),),
        severity="warning",
    ),
)


@hookimpl
def register_parallelisms() -> Iterable[ParallelismOffer]:
    def create(context: Context) -> Collective:
        from tensor_parallel.group import Group

        return Group(context.facts["parallel.rank"], context.section.size, context.facts["device.kind"])

    yield ParallelismOffer(
        name="tensor",
        summary="splits every weight over processes, by heads, feed-forward columns and vocabulary",
        settings=TensorParallelSettings,
        frameworks=frozenset({"torch"}),
        ranks=lambda section: int(section.size),
        create=create,
        rules=RULES,
        aliases=(Alias("processes that share the model", flag="-tp", sets="size"),),
    )
