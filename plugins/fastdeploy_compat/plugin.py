"""FastDeploy's flags and variables: those that set something here under another name, and what is told of all others."""

from __future__ import annotations

from collections.abc import Iterable

from core.hookspecs import hookimpl
from core.offers import RulesOffer


@hookimpl
def register_rules() -> Iterable[RulesOffer]:
    from fastdeploy_compat.words import ALIASES, WORDS

    yield RulesOffer(
        name="fastdeploy",
        summary="FastDeploy's flags and variables: what each one is here, or why it is nothing",
        aliases=ALIASES,
        foreign_words=WORDS,
    )
