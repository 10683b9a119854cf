"""Where a report is to be written: looked at before anything is measured."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from core.errors import ExitCode, Problem, UserError

DRAWN = (".png", ".svg", ".pdf")


def checked(**files: str | None) -> None:
    """``files``: by the flag's name, None where the flag was left out.

    :raises UserError: every one that could not be written, and a plot that nobody could draw.
    """
    given: Mapping[str, Path] = {f"--{name}": Path(file) for name, file in files.items() if file is not None}
    problems = [
        Problem(f"{path} cannot be written: {why}", flag, ("name another file",))
        for flag, path in given.items()
        if (why := _unwritable(path))
    ]
    plot = given.get("--plot")
    if plot is not None and plot.suffix.lower() not in DRAWN:
        problems.append(Problem(f"{plot} is no picture's name", "--plot", (f"end it in one of {', '.join(DRAWN)}",)))
    if plot is not None and find_spec("matplotlib") is None:
        problems.append(Problem("a plot needs matplotlib", "--plot", ("pip install 'dovetail-serve[bench]'",)))
    if problems:
        raise UserError(*problems)


def _unwritable(path: Path) -> str:
    if path.is_dir():
        return "it is a folder"
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    return "" if os.access(path if path.exists() else path.parent, os.W_OK) else "this user may not"


def write(flag: str, path: Path, text: str) -> None:
    """A disk may have filled up since it was looked at."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        problem = Problem(f"{path} cannot be written: {error.strerror}", flag, ("the figures are those shown above",))
        raise UserError(problem, exit_code=ExitCode.FAILED) from error
