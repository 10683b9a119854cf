"""The contract of rules."""

from __future__ import annotations

from core.testing.contract import Contract


class RulesContract(Contract, kit=True):
    """Not yet."""
