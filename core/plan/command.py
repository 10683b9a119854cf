"""``python -m core.plan``: what a configuration takes, and which hardware has it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from core.compose.facts import show
from core.compose.first_pass import first_pass
from core.compose.hardware import known_hardware, this_machine
from core.compose.probe import probe_devices
from core.errors import ExitCode, UserError, problem_text
from core.plan.table import COUNTS, Cell, Need, Row, departures, refusal, table
from core.suggest import did_you_mean

MODEL = "random:ernie-4.5-0.3b"
"""Where no model is named: the shape of ERNIE-4.5-0.3B, of which nothing has to be fetched."""


def main(argv: Sequence[str] | None = None, program: str = "python -m core.plan") -> int:
    known, rest = _parser(program).parse_known_args(argv)
    try:
        rows, quantizations, unnamed = _rows(known, rest)
    except UserError as error:
        for problem in error.problems:
            sys.stderr.write(problem_text(problem) + "\n")
        return error.exit_code
    runs = any(found.gpus is not None for row in rows for found in row.cells.values())
    code = ExitCode.OK if runs else ExitCode.REFUSED
    if known.json:
        sys.stdout.write(json.dumps(as_json(rows), indent=2) + "\n")
        return code
    if wrong := refusal(rows):
        sys.stderr.writelines(problem_text(problem) + "\n" for problem in wrong)
        return code
    if unnamed:
        sys.stdout.write(f"{MODEL}, as no --model is named\n\n")
    sys.stdout.write(as_text(rows, quantizations))
    return code


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="What a configuration takes of memory, and how many of which GPU run it, by the rules that judge a launch. "
        "Flags that are not listed here are the server's: --model, --max-model-len, --max-num-seqs and the like. "
        f"The model is {MODEL} where none is named.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="the whole table as JSON")
    parser.add_argument(
        "--gpus", metavar="N,N", default=",".join(map(str, COUNTS)), help="numbers to try (default: %(default)s)"
    )
    parser.add_argument(
        "--hardware", metavar="NAME", action="append", help="one of the known GPUs, or 'this machine'; repeatable"
    )
    parser.add_argument(
        "--quantization", metavar="NAME", action="append", help="one format, or none; repeatable (default: every one)"
    )
    return parser


def _rows(known: argparse.Namespace, rest: Sequence[str]) -> tuple[list[Row], list[str], bool]:
    first = first_pass(rest)
    unnamed = False
    if not any(token == "--model" or token.startswith("--model=") for token in first.argv):
        file = first.file.values if first.file else {}
        if "model" not in file and not first.env.get("DOVETAIL_MODEL"):
            first, unnamed = dataclasses.replace(first, overrides={"model": MODEL}), True
    manager = first.discover()
    offered = ["none", *sorted(each.name for each in manager.offers("quantizer"))]
    quantizations = known.quantization or offered
    hardware = [*known_hardware(), this_machine(probe_devices(first.env))]
    if known.hardware:
        names = {each.name.casefold(): each for each in hardware} | {"this machine": hardware[-1]}
        strange = next((name for name in known.hardware if name.casefold() not in names), None)
        if strange is not None:
            raise UserError.of(
                f"no hardware is known as {strange!r}{did_you_mean(strange, [each.name for each in hardware])}",
                "--hardware",
                f"one of: {', '.join([each.name for each in hardware[:-1]] + ['this machine'])}",
            )
        hardware = [names[name.casefold()] for name in known.hardware]
    return table(first, manager, hardware, quantizations, _counts(known.gpus)), quantizations, unnamed


def _counts(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdigit() and int(part) for part in parts):
        raise UserError.of(f"{text!r} is no list of numbers of GPUs", "--gpus", "--gpus 1,2,4")
    return sorted(int(part) for part in parts)


# --- as text ------------------------------------------------------------------------------------------------------------


def as_text(rows: Sequence[Row], quantizations: Sequence[str]) -> str:
    lines = list(_needs(rows, quantizations))
    notes: dict[str, int] = {}
    header = ("", "memory", "capability", *quantizations)
    body = []
    for row in rows:
        capability = "-" if row.hardware.capability is None else f"{row.hardware.capability:.1f}"
        cells = [_cell(row.cells[name], notes) for name in quantizations]
        body.append((row.hardware.name, show("memory_bytes", row.hardware.memory_bytes), capability, *cells))
    lines += ["", "GPUs that are enough (requests of the longest length that fit at the same time)", ""]
    lines += _columns([header, *body])
    if notes:
        lines += ["", *(f"[{number}] {note}" for note, number in notes.items())]
    more = departures(rows)
    if more:
        lines += ["", "beside FastDeploy's deployment page of this model", *(f"* {line}" for line in more)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _needs(rows: Sequence[Row], quantizations: Sequence[str]) -> Iterable[str]:
    """What one device takes, of the first machine that runs each format on one device."""
    found: dict[str, Need] = {}
    for row in rows:
        for name in quantizations:
            cell = row.cells[name]
            if cell.need is not None and (cell.gpus == 1 or name not in found):
                found.setdefault(name, cell.need)
    names = [name for name in quantizations if name in found]
    parts = (
        ("weights", "weights"),
        ("KV pages of the longest request", "kv_of_a_request"),
        ("activations of the largest step", "activations"),
        ("graphs", "graphs"),
    )
    if not names:
        yield "none of these machines runs it"
        return
    yield "of each device"
    yield ""
    titled = [[title, *(show("x_bytes", getattr(found[name], field)) for name in names)] for title, field in parts]
    yield from _columns([["", *names], *titled])


def _cell(cell: Cell, notes: dict[str, int]) -> str:
    if cell.gpus is not None:
        requests = cell.need.requests if cell.need else None
        return f"{cell.gpus}" if requests is None else f"{cell.gpus} ({requests})"
    marks = [f"[{notes.setdefault(problem.what, len(notes) + 1)}]" for problem in cell.problems]
    return " ".join(["no", *marks])


def _columns(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()


# --- as JSON ------------------------------------------------------------------------------------------------------------


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "hardware": [
            {
                "name": row.hardware.name,
                "capability": row.hardware.capability,
                "memory_bytes": row.hardware.memory_bytes,
                "quantizations": {name: _cell_json(cell) for name, cell in row.cells.items()},
            }
            for row in rows
        ],
        "notes": departures(rows),
    }


def _cell_json(cell: Cell) -> dict[str, Any]:
    return {
        "gpus": cell.gpus,
        "bytes": dataclasses.asdict(cell.need) if cell.need else None,
        "problems": [problem.what for problem in cell.problems],
    }
