"""The benchmark's command line and its table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from rich.console import Console
from rich.table import Table

from core.bench import files
from core.bench.offline import run
from core.bench.report import ANOTHER, PEERS, Measured, Options, Report
from core.errors import ExitCode, UserError, problem_text

OTHERS = {"gpu": "core.bench.gpu", "tune": "core.bench.tune"}
"""Commands of their own, by what is said first."""


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in OTHERS:
        return int(import_module(OTHERS[argv[0]]).main(argv[1:]))
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
        against=known.against,
        busy_cores=known.busy_cores,
        quality=known.quality,
        compose=tuple(compose),
    )
    try:
        files.checked(json=known.json, plot=known.plot)
        report = run(options)
        show(report, Console())
        if known.json:
            files.write("--json", Path(known.json), report.as_json() + "\n")
        if known.plot:
            from core.bench.plot import draw

            draw(report, Path(known.plot))
    except UserError as error:
        sys.stderr.write("".join(f"{problem_text(problem)}\n" for problem in error.problems))
        return error.exit_code
    if report.ended_by is not None:
        sys.stderr.write(f"{problem_text(report.ended_by)}\n")
    broken = report.ended_by is not None or (report.unsaid is not None and report.unsaid.failed)
    return ExitCode.FAILED if broken else ExitCode.OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m core.bench",
        description="Decode and prefill speed of a composition, alone or beside its peers on the same weights, "
        "in child processes that take turns. Flags that are not listed here go to the composition: --plugins and the like. "
        "`gpu` instead of flags: other workloads; `tune`: how a CUDA device's kernels are divided best. Each has its --help.",
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
    parser.add_argument(
        "--against",
        type=_peers,
        default=(),
        metavar="PEER,...",
        help=f"measure these beside it, on the same weights, and compare what they compute: {', '.join(PEERS)}, or "
        f"{ANOTHER}NAME for the same composition on another compute backend",
    )
    parser.add_argument(
        "--busy-cores",
        type=_whole(0),
        default=0,
        metavar="N",
        help="cores that a neighbour takes meanwhile (default: 0)",
    )
    parser.add_argument(
        "--quality",
        default="",
        metavar="MODEL",
        help="compare a quantization's predictions with those of the unpacked weights on this model (default: the one that is "
        "measured; for random weights the demo, if it is here)",
    )
    parser.add_argument("--json", metavar="FILE", help="write everything measured there")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the speeds there (needs matplotlib)")
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


def _peers(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in PEERS and not name.startswith(ANOTHER):
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(PEERS)}, {ANOTHER}NAME")
    return names


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
    if options.busy_cores:
        console.print(f"cores that a neighbour takes: {options.busy_cores}", highlight=False)
    until = "" if report.ended_by is None else "at most "
    table = Table(caption=f"median (least to most) of {until}{options.repeat}")
    table.add_column("")
    for name in report.versions:
        table.add_column(name, justify="right")
    for name in options.against:
        table.add_column(f"to {name}", justify="right")
    for row in report.rows:
        cells = [f"{row.name}, {row.unit}", *(_cell(row.measured.get(name)) for name in report.versions)]
        ratios = row.ratios
        table.add_row(*cells, *(f"{ratios[name]:.2f}x" if name in ratios else "" for name in options.against))
    console.print(table)
    for name, agreement in report.agreement.items():
        same, prompts = agreement.same_first
        console.print(
            f"with {name}: greedy tokens alike until a sequence parts: {agreement.same_tokens:.1%}; "
            f"same likeliest next token on {same} of {prompts} prompts; "
            f"its rivals' log-probabilities at most {agreement.most_apart:.2g} apart",
            highlight=False,
        )
    if report.quality is not None:
        found = report.quality
        console.print(
            f"quantized, on {found.model}: perplexity {found.perplexity:.3f}, unpacked {found.reference_perplexity:.3f} "
            f"({found.perplexity / found.reference_perplexity - 1:+.2%}); {found.kl:.4f} nats a token apart, "
            f"the same likeliest on {found.same_best:.1%} of {found.tokens}",
            highlight=False,
        )
    if report.unsaid is not None:
        missing = report.unsaid
        console.print(
            f"nothing is said about quality on {missing.model}: {missing.why}"
            + (f"; remedy: {', or '.join(missing.remedies)}" if missing.remedies else ""),
            highlight=False,
            soft_wrap=True,
        )
    if report.company is None:
        console.print("the measuring ended early: what is missing above was not measured", style="yellow")
        return
    console.print(f"neighbours in a step move a log-probability of ours by at most {report.company:.2g}", highlight=False)


def _cell(measured: Measured | None) -> str:
    if measured is None:
        return ""
    values = measured.values
    figure = _figure(measured.median)
    return figure if len(values) == 1 else f"{figure} ({_figure(min(values))} to {_figure(max(values))})"


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
