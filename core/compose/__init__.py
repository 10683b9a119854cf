"""From a command line to a judged plan, before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.compose.plan import Plan
    from core.compose.probe import DeviceProbe
    from core.plugin_manager import PluginManager

__all__ = ["compose"]


def compose(
    argv: Sequence[str] | None = None,
    *,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    probe: DeviceProbe | None = None,
    manager: PluginManager | None = None,
) -> Plan:
    """Everything that was asked for as one plan that can work.

    :param argv: flags, without the program's name.
    :param env: instead of the process's environment.
    :param overrides: settings by name, above all others: the offline LLM's keyword arguments.
    :param probe: instead of asking the machine what it has.
    :param manager: instead of what is installed.
    :raises UserError: with everything that is wrong, at once.
    """
    from core.compose.composition import attempt
    from core.compose.configuration import refuse_with
    from core.compose.first_pass import first_pass

    first = first_pass(argv or (), env, overrides)
    composition = attempt(first, manager or first.discover(), probe)
    refuse_with(composition.problems)
    assert composition.plan is not None
    return composition.plan
