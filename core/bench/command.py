"""The benchmark's command line and its table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from core.bench.offline import THEIRS, Measured, Options, Report, run
from core.errors import ExitCode, UserError, problem_text


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    known, compose = parser.parse_known_args(argv)
    options = Options(
        model=known.model,
        dtype=known.dtype,
        threads=known.threads,
        batches=known.batch,
        input_len=known.input_len,
        output_len=known.output_len,
        prefill=known.prefill,
        repeat=known.repeat,
        against=known.against is not None,
        compose=tuple(compose),
    )
    try:
        report = run(options)
    except UserError as error:
        sys.stderr.write("".join(f"{problem_text(problem)}\n" for problem in error.problems))
        return error.exit_code
    show(report, Console())
    if known.json:
        Path(known.json).write_text(report.as_json() + "\n", encoding="utf-8")
    return ExitCode.OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m core.bench",
        description="Decode and prefill speed of a composition, alone or beside transformers on the same weights, "
        "in child processes that take turns. Flags that are not listed here go to the composition: --plugins and the like.",
        allow_abbrev=False,
    )
    default = Options()
    parser.add_argument("--model", default=default.model, help="as the server's (default: %(default)s)")
    parser.add_argument(
        "--dtype", default=default.dtype, choices=("bfloat16", "float16", "float32"), help="(default: %(default)s)"
    )
    parser.add_argument("--threads", type=_whole(0), default=default.threads, help="CPU threads of each; 0 leaves it to them")
    parser.add_argument("--batch", type=_batches, default=default.batches, help="batch sizes to decode at (default: 1,8)")
    parser.add_argument("--input-len", type=_whole(1), default=default.input_len, help="prompt tokens (default: %(default)s)")
    parser.add_argument(
        "--output-len", type=_whole(2), default=default.output_len, help="tokens to decode (default: %(default)s)"
    )
    parser.add_argument(
        "--prefill", type=_whole(0), default=default.prefill, help="prompt to prefill; 0: none (default: %(default)s)"
    )
    parser.add_argument(
        "--repeat", type=_whole(1), default=default.repeat, help="repetitions after a warm-up (default: %(default)s)"
    )
    parser.add_argument("--against", choices=(THEIRS,), help="measure this beside it, and compare what both compute")
    parser.add_argument("--json", metavar="FILE", help="write everything measured there")
    return parser


def _whole(least: int) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least {least}")
        return int(text)

    return whole_number


def _batches(text: str) -> tuple[int, ...]:
    sizes = tuple(_whole(1)(part.strip()) for part in text.split(","))
    return tuple(dict.fromkeys(sizes))


def show(report: Report, console: Console) -> None:
    options, machine = report.options, report.machine
    console.print(
        f"{options.model}, {options.dtype}, prompts of {options.input_len}, {options.output_len} tokens out", highlight=False
    )
    console.print(f"{machine['cpu']}, {machine['cores']} cores, {options.threads or 'default'} threads", highlight=False)
    for name, versions in report.versions.items():
        console.print(f"{name}: {', '.join(f'{key} {value}' for key, value in versions.items())}", highlight=False)
    if machine["load_before"] > 0.5:
        console.print(f"the machine was not idle: load {machine['load_before']:.1f} before the first run", style="yellow")
    table = Table(caption=f"median (least to most) of {options.repeat}")
    table.add_column("")
    for name in report.versions:
        table.add_column(name, justify="right")
    if options.against:
        table.add_column("ratio", justify="right")
    for row in report.rows:
        cells = [f"{row.name}, {row.unit}", *(_cell(row.measured[name]) for name in report.versions)]
        if row.ratio is not None:
            cells.append(f"{row.ratio:.2f}x")
        table.add_row(*cells)
    console.print(table)
    if (agreement := report.agreement) is not None:
        same, prompts = agreement.same_first
        console.print(
            f"greedy tokens alike until a sequence parts: {agreement.same_tokens:.1%}; "
            f"same likeliest next token on {same} of {prompts} prompts; "
            f"its rivals' log-probabilities at most {agreement.most_apart:.2g} apart",
            highlight=False,
        )


def _cell(measured: Measured) -> str:
    values = measured.values
    figure = _figure(measured.median)
    return figure if len(values) == 1 else f"{figure} ({_figure(min(values))} to {_figure(max(values))})"


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
