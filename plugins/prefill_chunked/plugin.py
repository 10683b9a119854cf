"""Chunked prefill: a prompt longer than what a step has left is computed over several steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from core.hookspecs import hookimpl
from core.interfaces.rules import Condition, Remedy, Rule
from core.offers import Alias, Context, SchedulerOffer, Section

if TYPE_CHECKING:
    from core.interfaces.scheduler import SchedulingPolicy

LONG_SHARE = 0.04
"""Of the context: longer prompts are long, unless the threshold is set."""


class ChunkedSettings(Section, frozen=True):
    max_num_partial_prefills: int = Field(1, ge=1, description="prompts that one step may leave unfinished")
    max_long_partial_prefills: int = Field(1, ge=1, description="how many of these may be long; short ones overtake the rest")
    long_prefill_token_threshold: int = Field(
        0, ge=0, description="a prompt with more tokens left to compute is long; 0 is 4 % of the longest context"
    )

    @model_validator(mode="after")
    def _long_ones_are_among_all(self) -> ChunkedSettings:
        if self.max_long_partial_prefills > self.max_num_partial_prefills:
            raise ValueError(
                f"max_long_partial_prefills ({self.max_long_partial_prefills}) is greater than "
                f"max_num_partial_prefills ({self.max_num_partial_prefills})"
            )
        return self


PARTS_OF_WHOLE_PROMPTS = Rule(
    id="partial-prefills-without-chunked-prefill",
    when=(Condition("settings.prefill_chunked.max_num_partial_prefills", ">", 1),),
    reason="a step may leave {settings.prefill_chunked.max_num_partial_prefills} prompts unfinished, and the scheduler "
    "{chosen.scheduler} computes each in one piece",
    remedies=(
        Remedy("--enable-chunked-prefill", {"scheduler": "chunked"}),
        Remedy(
            "--max-num-partial-prefills 1",
            {"prefill_chunked.max_num_partial_prefills": 1, "prefill_chunked.max_long_partial_prefills": 1},
        ),
    ),
)


def long_threshold(settings: ChunkedSettings, max_model_len: int) -> int:
    return settings.long_prefill_token_threshold or int(max_model_len * LONG_SHARE)


@hookimpl
def register_schedulers() -> Iterable[SchedulerOffer]:
    def create(context: Context) -> SchedulingPolicy:
        from prefill_chunked.chunked import ChunkedPrefill

        section: ChunkedSettings = context.section
        return ChunkedPrefill(
            max_partial=section.max_num_partial_prefills,
            max_long=section.max_long_partial_prefills,
            long_threshold=long_threshold(section, context.settings["max_model_len"]),
        )

    yield SchedulerOffer(
        name="chunked",
        summary="splits long prompts over several steps, so that nobody waits long for a step",
        splits_prompts=True,
        create=create,
        settings=ChunkedSettings,
        idle_rules=(PARTS_OF_WHOLE_PROMPTS,),
        aliases=(
            Alias("split long prompts over several steps", flag="--enable-chunked-prefill", chooses="chunked"),
            Alias(
                "prompts that one step may leave unfinished",
                flag="--max-num-partial-prefills",
                sets="max_num_partial_prefills",
            ),
            Alias(
                "of these, how many may be long",
                flag="--max-long-partial-prefills",
                sets="max_long_partial_prefills",
            ),
            Alias(
                "tokens left to compute from which on a prompt is long",
                flag="--long-prefill-token-threshold",
                sets="long_prefill_token_threshold",
            ),
        ),
    )
