"""The offline benchmark: the same prompts to one engine or to two in turn, several times, and what came of it."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from core.errors import ExitCode, Problem, UserError

if TYPE_CHECKING:
    from core.compose.plan import Plan

OURS, THEIRS = "dovetail", "transformers"
TOP = 20  # how many of the likeliest tokens are compared
COMPARED = 4  # prompts whose next token is compared


@dataclass(frozen=True)
class Options:
    """``compose`` are further arguments of the server's command line, so that any composition can be measured."""

    model: str = "random:ernie-4.5-0.3b"
    dtype: str = "bfloat16"
    threads: int = 0
    batches: tuple[int, ...] = (1, 8)
    input_len: int = 128
    output_len: int = 64
    prefill: int = 512
    repeat: int = 3
    against: bool = False
    compose: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """One quantity of one contestant: every repetition's value, and their median."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass(frozen=True)
class Row:
    """One line of the report. ``more_is_better`` says how the ratio is to be read: ours over theirs, or theirs over ours."""

    name: str
    unit: str
    measured: Mapping[str, Measured]
    more_is_better: bool = True

    @property
    def ratio(self) -> float | None:
        """How many times better ours is; None when nothing was measured beside it."""
        if THEIRS not in self.measured:
            return None
        ours, theirs = self.measured[OURS].median, self.measured[THEIRS].median
        return ours / theirs if self.more_is_better else theirs / ours


@dataclass(frozen=True)
class Agreement:
    """``same_tokens``: the share of greedy tokens that are alike, counted in each sequence up to the first that differs.

    ``most_apart``: the greatest difference of a log-probability among the likeliest tokens after the same prompts.
    ``same_first``: on how many of those prompts the likeliest token is the same, of how many.
    """

    same_tokens: float
    most_apart: float
    same_first: tuple[int, int]


@dataclass(frozen=True)
class Report:
    options: Options
    rows: tuple[Row, ...]
    agreement: Agreement | None
    versions: Mapping[str, Mapping[str, str]]
    machine: Mapping[str, Any] = field(default_factory=dict)

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    def as_json(self) -> str:
        content = asdict(self)
        for row, plain in zip(self.rows, content["rows"], strict=True):
            plain["ratio"] = row.ratio
            plain["median"] = {who: measured.median for who, measured in row.measured.items()}
        return json.dumps(content, indent=1)


class Child:
    """A contestant in its own process. It computes only between ``ask`` and its answer."""

    def __init__(self, name: str, options: Mapping[str, Any], threads: int) -> None:
        self.name = name
        environment = dict(os.environ)
        if threads:
            environment["OMP_NUM_THREADS"] = str(threads)
        command = [sys.executable, "-m", "core.bench.contestant", name, json.dumps(dict(options))]
        began = perf_counter()
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        try:
            self.versions: dict[str, str] = self._answer()["versions"]
        except BaseException:
            self.close()
            raise
        self.start_seconds = perf_counter() - began

    def ask(self, **content: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(content) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # told, with the exit code, below
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            problem = Problem(
                f"the benchmark's {self.name} process ended with exit code {code}", "", ("read what it wrote above",)
            )
            raise UserError(problem, exit_code=ExitCode.FAILED)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def run(options: Options) -> Report:
    """:raises UserError: when the composition is refused, or a contestant fails."""
    from core.compose import compose

    load_before = os.getloadavg()[0]
    plan = compose(_argv(options))
    with ExitStack() as opened:
        setups: dict[str, dict[str, Any]] = {OURS: {"argv": _argv(options)}}
        if options.against:
            folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="dovetail-bench-")))
            _write(plan, folder, options.dtype)
            setups[THEIRS] = {"folder": str(folder), "dtype": options.dtype, "threads": options.threads}
            if plan.model.path is None:  # random weights: reading them is the same work for both, making them is not
                setups[OURS] = {"argv": _argv(options, model=str(folder))}
        children: dict[str, Child] = {}
        for name, setup in setups.items():
            children[name] = Child(name, setup, options.threads)
            opened.callback(children[name].close)
        rows, agreement = _measure(options, children, plan.spec.vocab)
        peaks = {name: Measured((child.ask(do="memory")["peak_bytes"] / 2**20,)) for name, child in children.items()}
    rows.append(Row("start", "s", {name: Measured((child.start_seconds,)) for name, child in children.items()}, False))
    rows.append(Row("peak memory", "MiB", peaks, False))
    versions = {name: child.versions for name, child in children.items()}
    return Report(options, tuple(rows), agreement, versions, {**machine(), "load_before": load_before})


def _argv(options: Options, model: str | None = None) -> list[str]:
    """The composition's command line: room for what is measured, unless the user's own arguments say otherwise."""
    longest = max(options.input_len + options.output_len, options.prefill + 1)
    stated = {
        "--model": model or options.model,
        "--dtype": options.dtype,
        "--threads": str(options.threads),
        "--max-model-len": str(max(16, longest)),
        "--max-num-seqs": str(max(*options.batches, COMPARED)),
    }
    given = {argument.partition("=")[0] for argument in options.compose}
    argv = [part for flag, value in stated.items() if flag not in given for part in (flag, value)]
    return [*argv, *options.compose]


def _write(plan: Plan, folder: Path, dtype: str) -> None:
    from core.bench.checkpoint import write_checkpoint
    from core.compose.build import fetched, stored_weights
    from core.plugin_manager import PluginManager

    with stored_weights(fetched(plan), PluginManager.load_only(plan.plugins)) as weights:
        write_checkpoint(folder, plan.spec, weights, dtype)


def _measure(options: Options, children: Mapping[str, Child], vocab: int) -> tuple[list[Row], Agreement | None]:
    draw = random.Random(0)

    def prompts(count: int, length: int) -> list[list[int]]:
        return [[draw.randrange(vocab) for _ in range(length)] for _ in range(count)]

    decode: dict[int, dict[str, list[float]]] = {batch: {name: [] for name in children} for batch in options.batches}
    prefill: dict[str, list[float]] = {name: [] for name in children}
    alike, counted = 0, 0
    for repetition in range(-1, options.repeat):  # the first warms up
        order = list(children.items())[:: -1 if repetition % 2 else 1]
        for batch in options.batches:
            asked = prompts(batch, options.input_len)
            answers = {name: child.ask(do="generate", prompts=asked, length=options.output_len) for name, child in order}
            if repetition >= 0:
                for name, answer in answers.items():
                    decode[batch][name].append(answer["rest_tokens"] / answer["rest"])
            if THEIRS in answers:
                pairs = zip(*(answers[name]["token_ids"] for name in (OURS, THEIRS)), strict=True)
                alike += sum(_alike(ours, theirs) for ours, theirs in pairs)
                counted += batch * options.output_len
        if options.prefill:
            asked = prompts(1, options.prefill)
            answers = {name: child.ask(do="generate", prompts=asked, length=1) for name, child in order}
            if repetition >= 0:
                for name, answer in answers.items():
                    prefill[name].append(options.prefill / answer["first"])
    rows = [Row(f"decode, batch {batch}", "tok/s", _measured(values)) for batch, values in decode.items()]
    if options.prefill:
        rows.append(Row(f"prefill of {options.prefill}", "tok/s", _measured(prefill)))
    if THEIRS not in children:
        return rows, None
    asked = prompts(COMPARED, options.input_len)
    top = min(TOP, vocab)
    found = [_rows(children[name].ask(do="next_token", prompts=asked, top=top)["likeliest"]) for name in (OURS, THEIRS)]
    return rows, Agreement(alike / counted, *_apart(*found))


def _rows(rows: Sequence[Sequence[tuple[int, float]]]) -> list[dict[int, float]]:
    return [dict(row) for row in rows]


def _measured(values: Mapping[str, Sequence[float]]) -> dict[str, Measured]:
    return {name: Measured(tuple(each)) for name, each in values.items()}


def _alike(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many tokens the two have before they part."""
    return next((at for at, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]), len(ours))


def _apart(ours: list[dict[int, float]], theirs: list[dict[int, float]]) -> tuple[float, tuple[int, int]]:
    """(greatest difference of a log-probability among tokens that both name, (same likeliest token, prompts))."""
    differences = [abs(a[token] - b[token]) for a, b in zip(ours, theirs, strict=True) for token in a.keys() & b.keys()]
    same = sum(max(a, key=a.__getitem__) == max(b, key=b.__getitem__) for a, b in zip(ours, theirs, strict=True))
    return max(differences, default=float("inf")), (same, len(ours))


def machine() -> dict[str, Any]:
    import platform

    names = [line.partition(":")[2].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.system(),
    }


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
