"""``python -m core.serve``: read, compose, then print or launch."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence

from core.interrupts import INTERRUPTED, ended_at_once

with ended_at_once():
    from core.errors import ExitCode, Problem, UserError, forbidden, problem_text


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
    with ended_at_once():
        from core.compose.configuration import refuse_with
        from core.compose.first_pass import first_pass

    first = first_pass(argv)
    if "--version" in first.actions:
        from importlib.metadata import version

        return _print(f"dovetail {version('dovetail-serve')}\n")
    with ended_at_once():
        manager = first.discover(_trace if "--trace-plugins" in first.actions else None)
    if "--help" in first.actions:
        from core.compose.report import help_text

        return _print(help_text(program, manager))
    if "--list-plugins" in first.actions:
        from core.compose.report import list_text

        return _print(list_text(manager))

    with ended_at_once():
        from core.compose.composition import attempt
        from core.compose.report import dump_text, explain_text

    composition = attempt(first, manager)
    refuse_with(composition.problems)
    plan = composition.plan
    assert plan is not None
    if "--explain" in first.actions:
        return _print(explain_text(plan))
    for warning in plan.warnings:
        print(problem_text(warning, "warning"), file=sys.stderr)  # noqa: T201
    if "--dump-config" in first.actions:
        return _print(dump_text(plan))
    from core.launch import serve

    return serve(plan)


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
