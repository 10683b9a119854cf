"""Calling what a plugin wrote: whatever it raises is told as its plugin's, with the place, and so is a wrong thing returned."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from core.checked_offers import check_returned
from core.errors import EngineDeadError, Problem, RequestError, UserError
from core.plugin_manager import Offered, cause, remedies

log = logging.getLogger("dovetail.compose")


def call(offered: Offered, function: str, *arguments: Any) -> Any:
    """What a function of an offer returns.

    :raises UserError: when it raises, with what it raised as the cause; when it returns what it should not.
    """
    called = getattr(offered.offer, function)
    with blaming(offered, function, str(getattr(called, "__module__", ""))):
        returned = called(*arguments)
    if wrong := check_returned(offered.offer, function, returned):
        raise UserError(_problem(offered, function, f"returned {wrong}"))
    return returned


@contextmanager
def blaming(offered: Offered, function: str, module: str = "") -> Iterator[None]:
    """Whatever is raised inside was raised by a plugin's ``function``, of this module. What tells its user already goes
    through.

    The traceback is logged for who debugs the plugin, and chained.
    """
    try:
        yield
    except (UserError, RequestError, EngineDeadError, PermissionError):
        raise
    except Exception as error:
        problem = _problem(offered, function, f"raised {cause(error, module.partition('.')[0])}")
        log.debug("%s", problem.what, exc_info=error)
        raise UserError(problem) from error


def _problem(offered: Offered, function: str, what: str) -> Problem:
    kind = offered.offer.kind.replace("_", " ")
    whose = f"{function} of the {kind} {offered.name!r} of plugin {offered.plugin} of {offered.provenance}"
    return Problem(f"{whose} {what}", "", remedies(offered.plugin, offered.provenance))
