"""``python -m core.serve``: read, compose, then print or launch."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from core.interrupts import INTERRUPTED, ended_at_once

with ended_at_once():
    from core.compose.actions import asked
    from core.engine.interpreter import Interpreter
    from core.errors import ExitCode, Problem, UserError, forbidden, problem_text

if TYPE_CHECKING:
    from core.compose.choose import Selection
    from core.compose.first_pass import FirstPass
    from core.compose.plan import Plan
    from core.offers import ComputeBackendOffer
    from core.plugin_manager import PluginManager

ENGINE = ("core.launch", "core.compose.build", "core.engine.engine", "core.engine.ranks", "core.engine.runner")
"""What every engine's process imports, whatever it is composed of."""


def main(argv: Sequence[str] | None = None, program: str = "python -m core.serve") -> int:
    """Returns the exit code. ``program`` is what --help calls it."""
    try:
        try:
            return _main(sys.argv[1:] if argv is None else argv, program)
        except PermissionError as error:
            raise forbidden(error) from error
    except UserError as error:
        for problem in error.problems:
            print(problem_text(problem), file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `--explain | head`
        return ExitCode.OK


def _main(argv: Sequence[str], program: str) -> int:
    if asked(argv) - {"--trace-plugins"}:
        return _tell(argv, program)
    with Interpreter() as interpreter:  # the engine's: it imports while this one composes
        interpreter.expect(ENGINE)
        with ended_at_once():
            from core.compose.first_pass import first_pass

        plan = _composed(first_pass(argv), lambda selection: interpreter.expect(ahead(selection)))
        _warn(plan)
        with ended_at_once():
            from core.launch import serve

        return serve(plan, interpreter)


def _tell(argv: Sequence[str], program: str) -> int:
    """Do something else than to serve."""
    with ended_at_once():
        from core.compose.first_pass import first_pass

    first = first_pass(argv)
    if "--version" in first.actions:
        from importlib.metadata import version

        return _print(f"dovetail {version('dovetail-serve')}\n")
    if "--help" in first.actions:
        from core.compose.report import help_text

        return _print(help_text(program, _discovered(first)))
    if "--list-plugins" in first.actions:
        from core.compose.report import list_text

        return _print(list_text(_discovered(first)))

    from core.compose.report import dump_text, explain_text

    plan = _composed(first)
    if "--explain" in first.actions:
        return _print(explain_text(plan))
    _warn(plan)
    return _print(dump_text(plan))


def _discovered(first: FirstPass) -> PluginManager:
    with ended_at_once():
        return first.discover(_trace if "--trace-plugins" in first.actions else None)


def ahead(selection: Selection) -> tuple[str, ...]:
    """What the engine's process may import before there is a plan: the framework takes longest of all before the weights."""
    offer: ComputeBackendOffer | None = selection.offer("compute_backend")
    return () if offer is None else offer.ahead


def _composed(first: FirstPass, selected: Callable[[Selection], None] | None = None) -> Plan:
    """:raises UserError: with everything that is wrong."""
    manager = _discovered(first)
    with ended_at_once():
        from core.compose.composition import attempt
        from core.compose.configuration import refuse_with

    composition = attempt(first, manager, selected=selected)
    refuse_with(composition.problems)
    assert composition.plan is not None
    return composition.plan


def _warn(plan: Plan) -> None:
    for warning in plan.warnings:
        print(problem_text(warning, "warning"), file=sys.stderr)  # noqa: T201


def _print(text: str) -> int:
    try:
        if sys.stdout is None:
            raise OSError(errno.EBADF, "it is closed")
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk
        sys.stdout = None  # what could not be written is not tried again at the end
        problem = Problem(f"standard output cannot be written to: {(error.strerror or str(error)).lower()}")
        raise UserError(problem, exit_code=ExitCode.FAILED) from None
    return ExitCode.OK


def _trace(line: str) -> None:
    print(f"dovetail: trace: {line}", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
