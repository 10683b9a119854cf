"""What was found out about something: whether it is well, what it is, and what to do about it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from core.errors import ExitCode, Problem

State = Literal["ok", "warn", "fail"]
_COLOURS: dict[State, str] = {"ok": "32", "warn": "33", "fail": "31"}


@dataclass(frozen=True)
class Finding:
    """``about``: one or two words. ``what``: lower case, without a final full stop. ``remedies``: instructions."""

    state: State
    about: str
    what: str
    remedies: tuple[str, ...] = ()


def ok(about: str, what: str) -> Finding:
    return Finding("ok", about, what)


def warn(about: str, what: str, *remedies: str) -> Finding:
    return Finding("warn", about, what, remedies)


def fail(about: str, what: str, *remedies: str) -> Finding:
    return Finding("fail", about, what, remedies)


def of_problem(state: State, about: str, problem: Problem) -> Finding:
    where = f" (set by {problem.where})" if problem.where else ""
    return Finding(state, about, f"{problem.what}{where}", problem.remedies)


def verdict(findings: Sequence[Finding]) -> ExitCode:
    return ExitCode.FAILED if any(each.state == "fail" for each in findings) else ExitCode.OK


def show(findings: Sequence[Finding], *, as_json: bool) -> ExitCode:
    """Print them; the exit code is a failure's when there is one."""
    if as_json:
        sys.stdout.write(json.dumps([asdict(each) for each in findings], indent=2) + "\n")
    else:
        from frontends.cli.screen import coloured

        sys.stdout.write("".join(f"{line}\n" for line in lines(findings, coloured(sys.stdout))))
    return verdict(findings)


def lines(findings: Sequence[Finding], colours: bool) -> Iterable[str]:
    width = max((len(each.about) for each in findings), default=0)
    for each in findings:
        state = f"{each.state:4}"
        shown = f"\033[1;{_COLOURS[each.state]}m{state}\033[0m" if colours else state
        yield f"{shown}  {each.about.ljust(width)}  {each.what}"
        for remedy in each.remedies:
            yield f"{'':{width + 8}}remedy: {remedy}"
    count = {state: sum(each.state == state for each in findings) for state in _COLOURS}
    yield ""
    yield f"{count['ok']} ok, {count['warn']} to look at, {count['fail']} to mend"
