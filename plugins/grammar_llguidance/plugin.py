"""Outputs of a given form, through llguidance: light, and fast enough to be computed beside each step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from core.hookspecs import hookimpl
from core.offers import Alias, Context, GrammarBackendOffer, Section

if TYPE_CHECKING:
    from core.interfaces.grammar import GrammarBackend


class LlguidanceSettings(Section, frozen=True):
    compact_json: bool = Field(False, description="JSON comes in one line, without spaces to lay it out")
    max_grammar_size: int = Field(
        500_000, ge=1000, description="largest grammar that a request may bring, in llguidance's units"
    )


@hookimpl
def register_grammar_backends() -> Iterable[GrammarBackendOffer]:
    def create(context: Context) -> GrammarBackend:
        from grammar_llguidance.matching import Llguidance

        return Llguidance(context.section.compact_json, context.section.max_grammar_size)

    yield GrammarBackendOffer(
        name="llguidance",
        summary="JSON schemas, regular expressions, choices and Lark or GBNF grammars",
        create=create,
        settings=LlguidanceSettings,
        aliases=(
            Alias(
                "what follows grammars (FastDeploy, vLLM)",
                flag="--guided-decoding-backend",
                sets="grammar",
                translates=(("guidance", "llguidance"), ("off", "none")),
            ),
            Alias(
                "JSON without spaces to lay it out (FastDeploy)",
                flag="--guided-decoding-disable-any-whitespace",
                sets="compact_json",
            ),
        ),
    )
