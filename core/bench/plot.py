"""A report as a picture: one group of bars a workload, a bar a contestant, its spread as a whisker."""

from __future__ import annotations

from pathlib import Path

from core.bench.report import Report
from core.errors import UserError


def draw(report: Report, path: Path) -> None:
    """:raises UserError: without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise UserError.of("a plot needs matplotlib", "--plot", "pip install 'dovetail-serve[bench]'") from None
    rows = [row for row in report.rows if row.unit == "tok/s"]
    names = list(report.versions)
    figure = Figure(figsize=(2 + 1.6 * len(rows), 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        has = [number for number, row in enumerate(rows) if name in row.measured]
        measured = [rows[number].measured[name] for number in has]
        medians = [each.median for each in measured]
        below = [each.median - min(each.values) for each in measured]
        above = [max(each.values) - each.median for each in measured]
        at = [number + (place - (len(names) - 1) / 2) * width for number in has]
        bars = axes.bar(at, medians, width * 0.94, yerr=(below, above), label=name, capsize=2)
        axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=8)
    axes.set_xticks(range(len(rows)), [row.name for row in rows])
    axes.set_ylabel("tokens a second")
    axes.set_yscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{report.options.model}, {report.options.dtype}, {report.machine['cpu']}", fontsize=9)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
