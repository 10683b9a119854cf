"""The offline benchmark: the same prompts to our engine and its peers in turn, several times, and what came of it."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.bench.busy import busy
from core.bench.child import Child
from core.bench.report import ANOTHER, OURS, Agreement, Measured, Options, Report, Row, Unsaid
from core.errors import Problem, UserError

if TYPE_CHECKING:
    from core.compose.plan import Plan
    from core.interfaces.model import Weight

TOP = 20  # how many of the likeliest tokens are compared
DEMO = "demo"  # whose predictions mean something
READ = 1024  # tokens of a text, to find what a quantization costs
COMPARED = 4  # prompts whose next token is compared
MODULES = {"transformers": "transformers", "llama.cpp": "llama_cpp"}
PACKAGES = {"transformers": "transformers", "llama.cpp": "llama-cpp-python"}
NOTHING = Problem("nothing had been measured by then")
LIKE = {8.0: "Q8_0", 4.0: "Q4_0"}  # what llama.cpp calls the weights of so many bits


def run(options: Options) -> Report:
    """Whatever can be refused is, before a process starts.

    :raises UserError: when a composition is refused, or a contestant fails before anything was measured.
    """
    from core.bench.comparison import compared
    from core.compose import compose
    from core.compose.build import fetched

    load_before = os.getloadavg()[0]
    plan = fetched(compose(_argv(options)))
    _check_peers(options)
    comparison = _comparison(options, plan)
    with ExitStack() as opened:
        setups: dict[str, dict[str, Any]] = {OURS: {"argv": _argv(options)}}
        if options.against:
            folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="dovetail-bench-")))
            setups |= {peer: _setup(peer, plan, folder, options) for peer in options.against}
            if plan.model.path is None:  # random weights: reading them is the same work for all, making them is not
                _write_checkpoint(plan, folder, options.dtype)
                setups[OURS] = {"argv": _argv(options, model=str(folder))}
        children: dict[str, Child] = {}
        for name, setup in setups.items():
            children[name] = Child(name, setup, options.threads)
            opened.callback(children[name].close)
        start = Row("start", "s", {name: Measured((child.start_seconds,)) for name, child in children.items()}, False)
        versions = {name: child.versions for name, child in children.items()}
        about = {**machine(), "load_before": load_before}
        speeds = Speeds(options, children)
        try:
            with busy(options.busy_cores):
                agreement = _measure(options, children, plan.spec.vocab, speeds)
            company = _company(children[OURS], options, plan.spec.vocab)
            peaks = {name: Measured((child.ask(do="memory")["peak_bytes"] / 2**20,)) for name, child in children.items()}
        except UserError as error:
            if not speeds.rows():
                raise UserError(*error.problems, NOTHING, exit_code=error.exit_code) from error
            return Report(options, (*speeds.rows(), start), {}, None, versions, about, ended_by=error.problems[0])
    rows = (*speeds.rows(), start, Row("peak memory", "MiB", peaks, False))
    found = compared(*comparison, READ) if isinstance(comparison, tuple) else comparison
    quality, unsaid = (None, found) if isinstance(found, Unsaid) else (found, None)
    return Report(options, rows, agreement, company, versions, about, quality, unsaid)


def _check_peers(options: Options) -> None:
    """Whether each could run at all: nobody is measured until everybody can be."""
    from core.compose import compose

    problems: list[Problem] = []
    for peer in options.against:
        if peer.startswith(ANOTHER):
            compose(_argv(_on_another(options, peer)))
        elif find_spec(MODULES[peer]) is None:
            package = PACKAGES[peer]
            problems.append(Problem(f"{package} is not installed", f"--against {peer}", (f"pip install {package}",)))
    if problems:
        raise UserError(*problems)


def _on_another(options: Options, peer: str) -> Options:
    return replace(options, compose=(*_without_backend(options.compose), "--backend", peer.removeprefix(ANOTHER)))


def _comparison(options: Options, plan: Plan) -> tuple[Plan, Plan] | Unsaid | None:
    """What finds what the quantization costs; None without one, and where it was not said on which model."""
    from core.bench.comparison import prepared
    from core.compose import compose
    from core.compose.build import fetched
    from core.models.sources import kept

    own = plan.model.path is not None
    model = options.quality or (options.model if own else DEMO if kept(DEMO, plan.settings) else "")
    if (plan.chosen("quantizer") is None and plan.chosen("head_quantizer") is None) or not model:
        return None

    def composed(model: str) -> tuple[Plan, Plan]:
        stated = {"--model": model, "--dtype": options.dtype, "--threads": str(options.threads), "--max-model-len": str(READ)}
        packed = compose([*_left_open(stated, options.compose), *options.compose])
        return fetched(packed), fetched(compose([part for flag in stated.items() for part in flag]))

    return prepared(model, bool(options.quality), composed)


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
    return [*_left_open(stated, options.compose), *options.compose]


def _left_open(stated: Mapping[str, str], given: Sequence[str]) -> list[str]:
    """Those flags that the user's own arguments do not have."""
    flags = {argument.partition("=")[0] for argument in given}
    return [part for flag, value in stated.items() if flag not in flags for part in (flag, value)]


def _setup(peer: str, plan: Plan, folder: Path, options: Options) -> dict[str, Any]:
    """What a peer's process is told, after the same weights were written in a form it reads."""
    if peer.startswith(ANOTHER):
        if plan.model.path is None:
            _write_checkpoint(plan, folder, options.dtype)
        return {"argv": _argv(_on_another(options, peer), model=None if plan.model.path else str(folder))}
    if peer == "transformers":
        _write_checkpoint(plan, folder, options.dtype)
        return {"folder": str(folder), "dtype": options.dtype, "threads": options.threads}
    from core.bench.gguf_checkpoint import write_gguf

    file = folder / "gguf" / "model.gguf"
    file.parent.mkdir()
    with _weights(plan) as weights:
        write_gguf(file, plan.spec, weights, options.dtype)
    return {
        "file": str(file),
        "stored": LIKE.get(plan.facts["quantizer.bits"] or 16, ""),
        "threads": options.threads,
        "sequences": max(*options.batches, COMPARED),
        "longest": max(options.input_len + options.output_len, options.prefill + 1),
    }


def _without_backend(argv: Sequence[str]) -> Iterator[str]:
    rest = iter(argv)
    for argument in rest:
        if argument == "--backend":
            next(rest, None)
        elif not argument.startswith("--backend="):
            yield argument


def _write_checkpoint(plan: Plan, folder: Path, dtype: str) -> None:
    from core.bench.checkpoint import write_checkpoint

    if not (folder / "model.safetensors").exists():
        with _weights(plan) as weights:
            write_checkpoint(folder, plan.spec, weights, dtype)


@contextmanager
def _weights(plan: Plan) -> Iterator[Iterable[Weight]]:
    from core.compose.build import fetched, stored_weights
    from core.plugin_manager import PluginManager

    with stored_weights(fetched(plan), PluginManager.load_only(plan.plugins)) as weights:
        yield weights


class Speeds:
    """What each repetition gave, as far as they came."""

    def __init__(self, options: Options, names: Iterable[str]) -> None:
        names = list(names)
        self._prefill_len = options.prefill
        self.decode: dict[int, dict[str, list[float]]] = {batch: {name: [] for name in names} for batch in options.batches}
        self.prefill: dict[str, list[float]] = {name: [] for name in names}

    def rows(self) -> list[Row]:
        named = {f"decode, batch {batch}": values for batch, values in self.decode.items()}
        named[f"prefill of {self._prefill_len}"] = self.prefill
        rows = [
            Row(name, "tok/s", {who: Measured(tuple(each)) for who, each in them.items() if each})
            for name, them in named.items()
        ]
        return [row for row in rows if row.measured]


def _measure(options: Options, children: Mapping[str, Child], vocab: int, speeds: Speeds) -> dict[str, Agreement]:
    prompts = Prompts(vocab)
    peers = [name for name in children if name != OURS]
    alike, counted = dict.fromkeys(peers, 0), 0
    for repetition in range(-1, options.repeat):  # the first warms up
        order = list(children.items())[:: -1 if repetition % 2 else 1]
        for batch in options.batches:
            asked = prompts(batch, options.input_len)
            answers = {name: child.ask(do="generate", prompts=asked, length=options.output_len) for name, child in order}
            if repetition >= 0:
                for name, answer in answers.items():
                    speeds.decode[batch][name].append(answer["rest_tokens"] / answer["rest"])
            for peer in peers:
                pairs = zip(answers[OURS]["token_ids"], answers[peer]["token_ids"], strict=True)
                alike[peer] += sum(_alike(ours, theirs) for ours, theirs in pairs)
            counted += batch * options.output_len
        if options.prefill:
            asked = prompts(1, options.prefill)
            answers = {name: child.ask(do="generate", prompts=asked, length=1) for name, child in order}
            if repetition >= 0:
                for name, answer in answers.items():
                    speeds.prefill[name].append(options.prefill / answer["first"])
    if not peers:
        return {}
    asked = prompts(COMPARED, options.input_len)
    found = {name: _next(child, asked, min(TOP, vocab)) for name, child in children.items()}
    return {peer: Agreement(alike[peer] / counted, *_apart(found[OURS], found[peer])) for peer in peers}


def _company(child: Child, options: Options, vocab: int) -> float:
    asked, top = Prompts(vocab)(COMPARED, options.input_len), min(TOP, vocab)
    alone = [row for prompt in asked for row in _next(child, [prompt], top)]
    most, _ = _apart(alone, _next(child, asked, top))
    return most


class Prompts:
    """Random tokens, the same in every run, and never the same twice in one."""

    def __init__(self, vocab: int) -> None:
        self._vocab = vocab
        self._draw = random.Random(0)

    def __call__(self, count: int, length: int) -> list[list[int]]:
        return [[self._draw.randrange(self._vocab) for _ in range(length)] for _ in range(count)]


def _next(child: Child, prompts: list[list[int]], top: int) -> list[dict[int, float]]:
    return _rows(child.ask(do="next_token", prompts=prompts, top=top)["likeliest"])


def _rows(rows: Sequence[Sequence[tuple[int, float]]]) -> list[dict[int, float]]:
    return [dict(row) for row in rows]


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
