"""Who may take KV pages: everybody from one pool, or newcomers and growing sequences from a part each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from core.hookspecs import hookimpl
from core.interfaces.rules import Condition, Fact, FactRef, Remedy, Rule
from core.offers import Alias, BlockPolicyOffer, Context, RulesOffer, Section

if TYPE_CHECKING:
    from core.interfaces.blocks import BlockPolicy

RATIO = 0.75
AHEAD = 2


class BlockSettings(Section, frozen=True):
    kv_cache_ratio: float | None = Field(
        None, gt=0.0, le=1.0, description=f"partitioned: the prompts' share of the pages; default: {RATIO}"
    )
    static_decode_blocks: int | None = Field(
        None, ge=0, description=f"partitioned: pages a request gets for its output when it is admitted; default: {AHEAD}"
    )


def without_effect(setting: str, flag: str) -> Rule:
    return Rule(
        id=f"{flag.removeprefix('--')}-without-partition",
        when=(
            Condition("chosen.block_policy", "==", "global"),
            Condition(f"settings.kv_blocks.{setting}", "!=", None),
        ),
        reason=f"{flag} {{settings.kv_blocks.{setting}}} has no effect: under the global block policy prompts and outputs take "
        "pages from one pool",
        remedies=(
            Remedy(f"drop {flag}", {f"kv_blocks.{setting}": None}),
            Remedy("divide the pages: --block-policy partitioned", {"block_policy": "partitioned"}),
        ),
        severity="warning",
    )


PART_TOO_SMALL = Rule(
    id="prompt-part-smaller-than-a-request",
    when=(
        Condition("chosen.block_policy", "==", "partitioned"),
        Condition("kv_blocks.prompt_pages", "<", FactRef("kv.pages_per_request")),
    ),
    reason="of {kv.num_pages} KV pages {kv_blocks.prompt_pages} are for prompts, and one request of max_model_len "
    "{settings.max_model_len} needs {kv.pages_per_request}",
    remedies=(
        Remedy("share all pages: --block-policy global", {"block_policy": "global"}),
        Remedy("raise --kv-cache-ratio, or the number of pages"),
        Remedy("lower --max-model-len"),
    ),
)

PROMPT_PAGES = Fact("kv_blocks.prompt_pages", int, "KV pages for what is known at admission, where the pool is partitioned")


def ratio_of(settings: Mapping[str, Any]) -> float:
    ratio = settings["settings.kv_blocks.kv_cache_ratio"]
    return RATIO if ratio is None else float(ratio)


@hookimpl
def register_block_policies() -> Iterable[BlockPolicyOffer]:
    def create_global(context: Context) -> BlockPolicy:
        from kv_blocks.policies import GlobalBlocks

        return GlobalBlocks()

    def create_partitioned(context: Context) -> BlockPolicy:
        from kv_blocks.policies import PartitionedBlocks

        section: BlockSettings = context.section
        return PartitionedBlocks(
            RATIO if section.kv_cache_ratio is None else section.kv_cache_ratio,
            AHEAD if section.static_decode_blocks is None else section.static_decode_blocks,
        )

    yield BlockPolicyOffer(
        name="global",
        summary="prompts and outputs take KV pages from one pool",
        create=create_global,
        settings=BlockSettings,
        rules=(
            without_effect("kv_cache_ratio", "--kv-cache-ratio"),
            without_effect("static_decode_blocks", "--static-decode-blocks"),
        ),
        aliases=(
            Alias("one pool of KV pages for everybody", env="ENABLE_V1_KVCACHE_SCHEDULER", value="1", chooses="global"),
            Alias("the prompts' share of the KV pages", flag="--kv-cache-ratio", sets="kv_cache_ratio"),
            Alias("pages for its output a request starts with", flag="--static-decode-blocks", sets="static_decode_blocks"),
            Alias("pages for its output a request starts with", env="FD_ENC_DEC_BLOCK_NUM", sets="static_decode_blocks"),
        ),
    )
    yield BlockPolicyOffer(
        name="partitioned",
        summary="a part of the KV pages for prompts, the rest for what is generated",
        create=create_partitioned,
        settings=BlockSettings,
        rules=(PART_TOO_SMALL,),
        aliases=(
            Alias("a part of the KV pages for prompts", env="ENABLE_V1_KVCACHE_SCHEDULER", value="0", chooses="partitioned"),
        ),
    )


@hookimpl
def register_rules() -> Iterable[RulesOffer]:
    def derive(facts: Mapping[str, Any]) -> Mapping[str, Any]:
        pages = facts["kv.num_pages"]
        return {PROMPT_PAGES.name: None if pages is None else int(pages * ratio_of(facts))}

    yield RulesOffer(name="kv_blocks", summary="how large the prompts' part is", facts=(PROMPT_PAGES,), derive=derive)
