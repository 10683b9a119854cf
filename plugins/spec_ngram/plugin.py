"""Speculation without a second model: tokens are guessed from what the request itself has said before."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from pydantic import AliasChoices, BaseModel, Field, model_validator

from core.hookspecs import hookimpl
from core.offers import Alias, Context, DraftProposerOffer, Section

if TYPE_CHECKING:
    from core.interfaces.drafts import DraftProposer


class SpeculativeConfig(BaseModel, extra="forbid", frozen=True):
    """``--speculative-config``, with the keys of FastDeploy and of vLLM."""

    method: Literal["ngram"]
    num_speculative_tokens: int | None = Field(None, ge=1, le=32)
    max_ngram_size: int | None = Field(None, ge=1, validation_alias=AliasChoices("max_ngram_size", "prompt_lookup_max"))
    min_ngram_size: int | None = Field(None, ge=1, validation_alias=AliasChoices("min_ngram_size", "prompt_lookup_min"))


class NgramSettings(Section, frozen=True):
    num_speculative_tokens: int = Field(8, ge=1, le=32, description="tokens guessed at a time, at most")
    max_ngram_size: int = Field(4, ge=1, le=64, description="tokens looked for in what was said before, at most")
    min_ngram_size: int = Field(2, ge=1, le=64, description="the same, at least")
    max_rows: int = Field(4, ge=1, description="with more requests generating at once nothing is guessed")
    min_acceptance: float = Field(
        0.25, ge=0.0, lt=1.0, description="share of right guesses below which a request is left alone for a while"
    )
    speculative_config: SpeculativeConfig | None = Field(
        None, description="the first three as one table, as FastDeploy and vLLM spell them"
    )

    @model_validator(mode="after")
    def _sizes_are_in_order(self) -> NgramSettings:
        _, largest, smallest = sizes(self)
        if smallest > largest:
            raise ValueError(f"min_ngram_size ({smallest}) is greater than max_ngram_size ({largest})")
        return self


def sizes(section: NgramSettings) -> tuple[int, int, int]:
    """(tokens guessed, most and least tokens looked for): the table's where it has them."""
    table = section.speculative_config
    if table is None:
        return section.num_speculative_tokens, section.max_ngram_size, section.min_ngram_size
    largest = table.max_ngram_size or section.max_ngram_size
    smallest = table.min_ngram_size or (
        min(section.min_ngram_size, largest) if table.max_ngram_size else section.min_ngram_size
    )
    return table.num_speculative_tokens or section.num_speculative_tokens, largest, smallest


@hookimpl
def register_draft_proposers() -> Iterable[DraftProposerOffer]:
    def create(context: Context) -> DraftProposer:
        from spec_ngram.ngram import NgramProposer

        section: NgramSettings = context.section
        most, largest, smallest = sizes(section)
        return NgramProposer(most, section.max_rows, largest, smallest, section.min_acceptance)

    yield DraftProposerOffer(
        name="ngram",
        summary="guesses what followed the same tokens before, and checks several at once",
        create=create,
        settings=NgramSettings,
        aliases=(
            Alias(
                "speculation, as FastDeploy and vLLM spell it",
                flag="--speculative-config",
                sets="speculative_config",
                chooses="ngram",
                asks="method",
            ),
        ),
    )
