"""``python -m core.bench tune``: how kernels are divided best on the device that is here, tried out and kept as a file.

Every candidate has to compute what the reference computes before its time counts. Flags that are not listed go to the
composition: a quantization's weights are tried with --quantization. What it writes is taken at the next start.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.bench.report import Options
from core.errors import ExitCode, Problem, UserError, problem_text
from core.interfaces.tuning import Clock, Trial, Tuned, Tuning

if TYPE_CHECKING:
    from core.compose.plan import Plan
    from core.models.decoder import Decoder

ROWS = (1, 2, 4, 8, 16, 32, 128, 512)


def main(
    argv: Sequence[str] | None = None, *, load: Callable[[Plan], Decoder] | None = None, clock: Clock | None = None
) -> int:
    """``load``: from a plan to a placed model. ``clock``: instead of the backend's own."""
    options, compose = _parser().parse_known_args(argv)
    try:
        tuned = _tuned(options, compose, load, clock)
        path = Path(options.output) if options.output else tuned.path
        _write(path, tuned.text)
    except UserError as error:
        sys.stderr.write("".join(f"{problem_text(problem)}\n" for problem in error.problems))
        return error.exit_code
    taken = f"--torch-tiling {path}" if options.output else "it is taken from now on, on this device and with this Triton"
    sys.stdout.write(f"written to {path}: {taken}\n")
    wrong = [f"{trial.operation}, {trial.rows} rows: {each}" for trial in tuned.trials for each in trial.wrong]
    if not wrong:
        return ExitCode.OK
    problem = Problem(
        f"{len(wrong)} candidates computed wrong numbers; none of them was taken:\n    " + "\n    ".join(wrong),
        "",
        ("report this: a kernel or its compiler is wrong on this device", "--torch-kernels reference, for plain torch"),
    )
    sys.stderr.write(f"{problem_text(problem)}\n")
    return ExitCode.FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m core.bench tune", description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", default=Options().model, help="as the server's (default: %(default)s)")
    told = ",".join(map(str, ROWS))
    parser.add_argument("--rows", type=_rows, default=ROWS, metavar="N,...", help=f"tokens in a step (default: {told})")
    parser.add_argument("--operations", type=_names, default=(), metavar="NAME,...", help="which to try (default: all)")
    parser.add_argument("--context", type=_positive, default=256, help="cached tokens of a sequence (default: %(default)s)")
    parser.add_argument("--output", metavar="FILE", help="write there (default: the user's cache, where it is found by itself)")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def _rows(text: str) -> tuple[int, ...]:
    return tuple(_positive(part.strip()) for part in text.split(","))


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _tuned(
    options: argparse.Namespace, compose: Sequence[str], load: Callable[[Plan], Decoder] | None, clock: Clock | None
) -> Tuned:
    from core.compose import compose as composed
    from core.compose.build import fetched, load_model

    plan = composed(["--model", options.model, *compose])
    if plan.facts["parallel.ranks"] > 1:
        raise UserError.of(
            "one process tunes for one device, and this model is shared by several", "", "let one process hold it"
        )
    decoder = (load or load_model)(fetched(plan))
    wanted = Tuning(
        rows=options.rows,
        context=options.context,
        page_size=plan.settings["block_size"],
        model=" ".join([options.model, *compose]),
        operations=frozenset(options.operations),
        clock=clock,
        told=_tell,
    )
    try:
        return decoder.backend.tune(decoder.spec, decoder.layers, decoder.final_norm, decoder.head, wanted)
    finally:
        decoder.backend.close()


def _tell(trial: Trial) -> None:
    """One line behind each, as most of the time goes by in compilers."""
    less = "".join(f", {len(them)} {what}" for them, what in ((trial.skipped, "skipped"), (trial.wrong, "WRONG")) if them)
    sys.stderr.write(
        f"[{trial.number}/{trial.of}] {trial.operation}, {trial.rows} rows: {trial.before * 1e6:.2f} -> "
        f"{trial.seconds * 1e6:.2f} us, {trial.found}; {trial.tried} tried{less}\n"
    )
    sys.stderr.flush()


def _write(path: Path, text: str) -> None:
    """Whole or not at all: a server may be starting."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.{os.getpid()}")
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise UserError.of(f"{path} cannot be written: {error.strerror}", "--output", "name another file") from error
