"""What a user may be told: every error that ends a launch, or refuses a request, is one of these."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every command."""

    OK = 0
    FAILED = 1  # something broke while running
    REFUSED = 2  # the command line, a config value or the composition was wrong: nothing was started
    ENGINE_DIED = 3  # the engine process ended by itself


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: what, where it was set, and what to do about it.

    ``what`` is a lower-case sentence without a final full stop; ``where`` names an origin
    ("--max-model-len", "$DOVETAIL_MODEL", "demo.toml:7") or is empty; each remedy is an instruction. Code that knows which
    setting is wrong, but not where it was set, gives its key ("model", "openai_http.port"): the launch puts the origin there.
    """

    what: str
    where: str = ""
    remedies: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  set by: {self.where}")
        lines += [f"  remedy: {remedy}" for remedy in self.remedies]
        return "\n".join(lines)


class UserError(Exception):
    """One or more problems the user can mend. ``str()`` lists every one; nothing is reported one at a time."""

    def __init__(self, *problems: Problem, exit_code: ExitCode = ExitCode.REFUSED) -> None:
        if not problems:
            raise ValueError("a UserError needs at least one problem")
        self.problems: tuple[Problem, ...] = problems
        self.exit_code = exit_code
        super().__init__("\n".join(str(problem) for problem in problems))

    @classmethod
    def of(cls, what: str, where: str = "", *remedies: str) -> UserError:
        return cls(Problem(what, where, tuple(remedies)))


def problem_text(problem: Problem, severity: str = "error") -> str:
    """One block, as every command prints it: ``dovetail: error: what``, then where it was set and what to do."""
    return f"dovetail: {severity}: {problem}"


def forbidden(error: PermissionError) -> UserError:
    """A file or folder of the user's that this process may not open."""
    return UserError.of(
        f"{error.filename} may not be read or written by this user",
        "",
        "give the user who runs this the permission (chmod, chown), or run it as one who has it",
    )


INTERNAL = "an internal error; the server's log has the cause"
"""What is told of an error that nobody foresaw: its own text may hold anything."""


class RequestError(ValueError):
    """A request that cannot be served as it is. Front ends map it to a 4xx with ``param`` and ``code``."""

    def __init__(self, message: str, *, param: str | None = None, code: str = "invalid_value", status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.status = status


class EngineDeadError(RuntimeError):
    """The engine is gone; nothing further can be generated. Front ends map it to a 503."""
