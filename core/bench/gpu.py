"""``python -m core.bench gpu``: an engine at the workloads that others were measured at, beside what the device allows.

All in one process, without HTTP. Flags that are not listed go to the composition. It runs anywhere, smaller with ``--scale``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from core.bench import files
from core.bench.child import Child
from core.bench.host import KINDS, step_seconds
from core.bench.report import Options
from core.bench.workloads import Ceilings, Workload, floor_seconds, nano256, sweep, thousand
from core.errors import ExitCode, UserError, problem_text
from core.interfaces.request import Request

if TYPE_CHECKING:
    from core.engine.engine import Engine

WHAT = ("check", "sweep", "nano256", "1000x1024/128", "host", "start")
DRAWN_BATCHES = (1, 256, 512)


@dataclass(frozen=True)
class Line:
    """``figure`` tokens a second, the best of the repetitions; ``step_ms`` a step of all requests at once."""

    name: str
    figure: float
    share_of_floor: float
    peers: tuple[int, int] | None
    step_ms: float | None = None


@dataclass
class Found:
    device: str
    composed_of: str
    ceilings: Ceilings
    lines: list[Line] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    options, compose = parser.parse_known_args(argv)
    try:
        files.checked(json=options.json, plot=options.plot)
        found = measure(options, ["--model", options.model, *compose])
        show(found, Console())
        if options.json:
            files.write("--json", Path(options.json), json.dumps(asdict(found), indent=1) + "\n")
        if options.plot:
            draw(found, Path(options.plot))
    except UserError as error:
        sys.stderr.write("".join(f"{problem_text(problem)}\n" for problem in error.problems))
        return error.exit_code
    return ExitCode.OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m core.bench gpu", description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", default=Options().model, help="as the server's (default: %(default)s)")
    parser.add_argument("--what", type=_names, default=WHAT, metavar="NAME,...", help=f"of {', '.join(WHAT)} (default: all)")
    batches = (1, 8, 32, 128, 256, 512)
    parser.add_argument("--batch", type=_numbers, default=batches, metavar="N,...", help="requests at once, of the sweep")
    parser.add_argument("--scale", type=float, default=1.0, help="of prompts, outputs and their number (default: 1)")
    parser.add_argument("--repeat", type=int, default=2, help="of which the best counts (default: 2)")
    parser.add_argument("--json", metavar="FILE", help="write everything measured there")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the speeds there (needs matplotlib)")
    return parser


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in WHAT:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(WHAT)}")
    return names


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def measure(options: argparse.Namespace, compose: Sequence[str]) -> Found:
    from core.compose import compose as composed
    from core.compose.build import build_engine, fetched

    longest = max(16, int(2048 * options.scale))
    stated = ["--max-model-len", str(longest), "--max-num-seqs", str(max(options.batch)), *compose]
    plan = fetched(composed(stated))
    # First what runs in processes of its own: an engine takes all memory that it may have.
    notes = [_checked(compose, longest)] if "check" in options.what else []
    notes += _starts(stated) if "start" in options.what else []
    found = Found(_device(), " ".join(plan.plugins), _ceilings(), notes=notes)
    _give_memory_back()
    engine = build_engine(plan)
    weights = plan.facts["memory.weights_bytes"]
    per_token = plan.facts["memory.kv_page_bytes"] // plan.settings["block_size"]

    def line(workload: Workload, step: bool = False) -> None:
        run(engine, workload, "warm")
        seconds = min(run(engine, workload, str(turn)) for turn in range(options.repeat))
        floor = floor_seconds(workload, plan.spec, weights, per_token, found.ceilings, engine.config.max_num_seqs)
        step_ms = seconds / (workload.jobs[0][1].max_tokens or 1) * 1e3 if step else None
        found.lines.append(Line(workload.name, workload.counted / seconds, floor / seconds, workload.peers, step_ms))

    vocab = plan.spec.vocab
    if "sweep" in options.what:
        prompt, output = max(2, int(128 * options.scale)), max(2, int(256 * options.scale))
        for kind, batches in (("greedy", options.batch), ("nucleus", [b for b in options.batch if b in DRAWN_BATCHES])):
            for batch in batches:
                line(sweep(kind, batch, vocab, prompt, output), step=True)
    for name, made in (("nano256", nano256), ("1000x1024/128", thousand)):
        if name in options.what:
            line(made(vocab, options.scale))
    if "host" in options.what:
        batch = max(options.batch)
        for name, params in KINDS.items():
            seconds = step_seconds(engine, batch, max(8, int(200 * options.scale)), max(2, int(128 * options.scale)), **params)
            found.notes.append(f"host time of a decode step at batch {batch}, {name}, no model: {seconds * 1e6:.0f} us")
    engine.close()
    return found


def run(engine: Engine, workload: Workload, name: str) -> float:
    """Seconds until the last of all requests has ended."""
    began = perf_counter()
    for number, (prompt, params) in enumerate(workload.jobs):
        engine.add(Request(request_id=f"{name}-{number}", prompt_token_ids=prompt, params=params))
    tokens = 0
    while engine.has_work:
        for event in engine.step():
            if event.error:
                raise UserError.of(f"request {event.request_id} of {workload.name} failed: {event.error}", "", "see the log")
            tokens += len(event.token_ids)
    seconds = perf_counter() - began
    if tokens != workload.output_tokens:
        raise UserError.of(f"{workload.name} gave {tokens} tokens, not {workload.output_tokens}", "", "see the log")
    return seconds


def _checked(compose: Sequence[str], longest: int) -> str:
    """Greedy tokens in float32, of the composition and of plain torch launched operation by operation, in own processes."""
    stated = ["--dtype", "float32", "--max-model-len", str(longest), "--max-num-seqs", "8"]
    kept = [part for pair in pairwise(compose) if pair[0] in ("--model", "--device") for part in pair]
    length = longest // 8
    prompts = [
        prompt[: 1 + len(prompt) * number // 8] for number, (prompt, _) in enumerate(sweep("greedy", 8, 250, length).jobs)
    ]
    told: list[list[list[int]]] = []
    for argv in ([*compose, *stated], [*kept, "--torch-kernels", "reference", *stated]):
        child = Child("dovetail", {"argv": argv}, 0)
        try:
            told.append(child.ask(do="generate", prompts=prompts, length=length)["token_ids"])
        finally:
            child.close()
    alike = sum(ours == plain for ours, plain in zip(*told, strict=True))
    return f"greedy tokens in float32, {length} each, beside plain torch run eagerly: {alike} of {len(prompts)} sequences alike"


def _starts(argv: Sequence[str]) -> list[str]:
    notes = []
    for which in ("first", "second"):
        began = perf_counter()
        child = Child("dovetail", {"argv": list(argv)}, 0)
        try:
            child.ask(do="generate", prompts=[[1, 2, 3]], length=1)
            notes.append(f"{which} start of a process, to its first token: {perf_counter() - began:.1f} s")
        finally:
            child.close()
    return notes


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "the CPU"


def _ceilings() -> Ceilings:
    """By torch, on the device that it finds: 1 GiB read (64 MiB on a CPU), more than caches hold, and a product of matrices.

    A CUDA device times itself: a host that has to be told adds what that takes.
    """
    import torch

    cuda = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    block = torch.rand((1 << 28) if cuda else (1 << 24), dtype=torch.float32, device=device)
    side = 8192 if cuda else 512
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = _seconds_on_cuda if cuda else _seconds_here
    return Ceilings(block.nbytes / seconds(block.sum), 2.0 * side**3 / seconds(lambda: left @ right))


def _seconds_here(work: Callable[[], Any]) -> float:
    def once() -> float:
        began = perf_counter()
        work()
        return perf_counter() - began

    return min(once() for _ in range(5))


def _seconds_on_cuda(work: Callable[[], Any]) -> float:
    """The median of 20 in a row, behind some that are not counted."""
    import torch

    marks = [torch.cuda.Event(enable_timing=True) for _ in range(21)]  # type: ignore[no-untyped-call]
    for _ in range(5):
        work()
    for mark in marks:
        mark.record()
        work()
    torch.cuda.synchronize()
    return float(median(first.elapsed_time(second) for first, second in pairwise(marks))) / 1e3


def _give_memory_back() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def show(found: Found, console: Console) -> None:
    reads, products = found.ceilings.bytes_per_second / 1e12, found.ceilings.flops / 1e12
    console.print(f"{found.device}: reads {reads:.2f} TB/s, products {products:.0f} TFLOP/s", highlight=False)
    console.print(f"composed of {found.composed_of}", highlight=False)
    table = Table(caption="tokens a second; the others on one H200")
    for name in ("", "tok/s", "ms a step", "of the floor", "vLLM", "SGLang"):
        table.add_column(name, justify="right" if name else "left")
    for line in found.lines:
        step = "" if line.step_ms is None else f"{line.step_ms:.3f}"
        peers = ("", "") if line.peers is None else tuple(f"{peer:,}" for peer in line.peers)
        table.add_row(line.name, f"{line.figure:,.0f}", step, f"{line.share_of_floor:.0%}", *peers)
    if found.lines:
        console.print(table)
    for note in found.notes:
        console.print(note, highlight=False, soft_wrap=True)


def draw(found: Found, path: Path) -> None:
    """:raises UserError: without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise UserError.of("a plot needs matplotlib", "--plot", "pip install 'dovetail-serve[bench]'") from None
    figure = Figure(figsize=(2 + len(found.lines), 4), layout="constrained")
    axes = figure.subplots()
    for place, name in enumerate(("dovetail", "vLLM, H200", "SGLang, H200")):
        bars = [line.figure if place == 0 else (line.peers or (0, 0))[place - 1] for line in found.lines]
        axes.bar([number + 0.27 * place - 0.27 for number in range(len(bars))], bars, 0.25, label=name)
    axes.set_xticks(range(len(found.lines)), [line.name for line in found.lines], rotation=30)
    axes.set_ylabel("tokens a second")
    axes.set_yscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(found.device, fontsize=9)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
