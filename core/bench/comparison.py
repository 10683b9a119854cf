"""What a quantization costs: composed before anything is measured, read when the speeds are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from core.bench.report import Unsaid
from core.errors import Problem, UserError

if TYPE_CHECKING:
    from core.bench.quality import Quality
    from core.compose.plan import Plan

Composed = Callable[[str], "tuple[Plan, Plan]"]  # of a model: packed, and unpacked; both with their files on disk


def prepared(model: str, named: bool, composed: Composed) -> tuple[Plan, Plan] | Unsaid:
    """:raises UserError: when the user named this model, and it cannot be compared."""
    try:
        packed, unpacked = composed(model)
        if unpacked.chosen("quantizer") is not None or unpacked.chosen("head_quantizer") is not None:
            raise UserError.of(
                f"{model} is packed by itself: there are no unpacked weights beside it", "--quality", "name one that is not"
            )
    except UserError as error:
        if named:
            raise
        return _unsaid(model, error.problems[0])
    return packed, unpacked


def compared(packed: Plan, unpacked: Plan, most: int) -> Quality | Unsaid:
    """Whatever goes wrong in here is told: the speeds that were measured before are not lost by it."""
    from core.bench.quality import TEXT, measure

    try:
        return measure(packed, unpacked, TEXT.read_text(encoding="utf-8"), most)
    except UserError as error:
        return _unsaid(packed.settings["model"], error.problems[0])
    except (OSError, RuntimeError, ValueError) as error:
        return Unsaid(packed.settings["model"], f"{type(error).__name__}: {error}", (), failed=True)


def _unsaid(model: str, problem: Problem) -> Unsaid:
    return Unsaid(model, problem.what, ("--quality MODEL: compare on another", *problem.remedies))
