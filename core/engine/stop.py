"""When a sequence ends. OpenAI's rules, on token ids; stop strings are the text side's affair."""

from __future__ import annotations

from core.engine.rows import Sequence
from core.interfaces.request import FinishReason, SamplingParams


def stop_tokens(params: SamplingParams, eos_token_ids: tuple[int, ...]) -> frozenset[int]:
    """The tokens that end a request when sampled."""
    return frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else frozenset(eos_token_ids))


def banned_tokens(params: SamplingParams, eos_token_ids: tuple[int, ...]) -> frozenset[int]:
    """The tokens that may not be sampled before ``min_tokens``: eos too where it is ignored as a stop."""
    return frozenset(params.stop_token_ids) | frozenset(eos_token_ids) if params.min_tokens else frozenset()


def verdict(sequence: Sequence, token: int, length: int) -> tuple[FinishReason | None, int | None]:
    """(why it ends or None, the token that stopped it or None) now that ``token`` has made it ``length`` tokens long.

    A stop token at the last allowed place is a "stop": it would have ended there anyway.
    """
    if token in sequence.stops and length > sequence.min_length:
        return "stop", token
    return ("length", None) if length >= sequence.limit else (None, None)
