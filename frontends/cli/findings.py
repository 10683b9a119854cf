"""What was found out about something: whether it is well, what it is, and what to do about it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from core.errors import ExitCode, Problem

State = Literal["ok", "warn", "fail"]
_WIDTH = 14  # of what a finding is about
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


def show(findings: Iterable[Finding], *, as_json: bool) -> ExitCode:
    """Print each as it is found, or all as JSON; the exit code is a failure's when there is one."""
    seen: list[Finding] = []
    if as_json:
        seen += findings
        sys.stdout.write(json.dumps([asdict(each) for each in seen], indent=2) + "\n")
    else:
        from frontends.cli.screen import coloured

        for line in lines(_noted(findings, seen), coloured(sys.stdout)):
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
    return ExitCode.FAILED if any(each.state == "fail" for each in seen) else ExitCode.OK


def _noted(findings: Iterable[Finding], seen: list[Finding]) -> Iterator[Finding]:
    for each in findings:
        seen.append(each)
        yield each


def lines(findings: Iterable[Finding], colours: bool) -> Iterator[str]:
    count = dict.fromkeys(_COLOURS, 0)
    for each in findings:
        count[each.state] += 1
        state = f"{each.state:4}"
        shown = f"\033[1;{_COLOURS[each.state]}m{state}\033[0m" if colours else state
        yield f"{shown}  {each.about.ljust(_WIDTH)}  {each.what}"
        for remedy in each.remedies:
            yield f"{'':{_WIDTH + 8}}remedy: {remedy}"
    yield ""
    yield f"{count['ok']} ok, {count['warn']} to look at, {count['fail']} to mend"
