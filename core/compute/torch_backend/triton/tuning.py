"""Trying candidates for the table that divides kernels: each has to compute what plain torch computes before it is timed.

An operation runs as in a step: as the backend's own method, on a backend that has the candidate's table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import groupby
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor
from triton.errors import TritonError  # type: ignore[import-untyped, import-not-found, unused-ignore]

from core.compute.torch_backend.attention import PagedKV
from core.compute.torch_backend.backend import Norm, TorchBackend
from core.compute.torch_backend.linear import Target, TorchLinear
from core.compute.torch_backend.triton import candidates, tables
from core.compute.torch_backend.triton.backend import TritonBackend, format_of, reading_of, this_device
from core.compute.torch_backend.triton.tiling import Division, Table, Way, Ways, tiling
from core.compute.torch_backend.triton.trial import ATTENTION, OPERATIONS, Inputs, decode_step, in_float32
from core.errors import UserError
from core.interfaces.compute import Layer
from core.interfaces.model import DecoderSpec
from core.interfaces.tuning import Clock, Trial, Tuned, Tuning

WORTH = 0.98  # of the time of what is in force: less of a gain is noise
ALLOWED = {2: 3e-2, 4: 1e-4}
"""Difference of any result, as a share of the largest value in it; by the bytes of the number format."""

Candidate = TypeVar("Candidate", Way, Division)


class EventClock:
    """A CUDA device's own, with nothing in its caches. Between runs it writes for longer than a host takes to launch one."""

    WARMUPS, RUNS = 3, 20
    WRITTEN = 512 << 20

    def __init__(self, device: torch.device) -> None:
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        self._memory = torch.empty(max(4 * cache, self.WRITTEN), dtype=torch.uint8, device=device)

    def __call__(self, work: Callable[[], object]) -> float:
        for _ in range(self.WARMUPS):
            work()
        marks = []
        for _ in range(self.RUNS):
            self._memory.zero_()
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            began.record()
            work()
            ended.record()
            marks.append((began, ended))
        torch.cuda.synchronize()
        return float(median(began.elapsed_time(ended) for began, ended in marks)) / 1e3


class Tuner:
    def __init__(
        self,
        backend: TritonBackend,
        target: Target,
        spec: DecoderSpec,
        layer: Layer,
        norm: Norm,
        head: TorchLinear,
        wanted: Tuning,
    ) -> None:
        self._backend, self._wanted = backend, wanted
        self._spec = replace(spec, num_layers=1)
        self._layer, self._norm, self._head = layer, norm, head
        self._device, self._dtype = target.device, target.dtype
        self._clock: Clock = wanted.clock or EventClock(target.device)
        self._twin = TorchBackend(backend.device, "float32", torch.get_num_threads())
        self._twin_layer = Layer(
            input_norm=Norm(layer.input_norm.weight.float(), layer.input_norm.eps),
            qkv=in_float32(layer.qkv),
            o=in_float32(layer.o),
            post_norm=Norm(layer.post_norm.weight.float(), layer.post_norm.eps),
            gate_up=in_float32(layer.gate_up),
            down=in_float32(layer.down),
        )
        self._twin_head = in_float32(head)

    def tuned(self) -> Tuned:
        """:raises UserError: for operations that there are not."""
        wanted, table = self._wanted, self._backend.table
        unknown = sorted(wanted.operations - set(OPERATIONS))
        if unknown:
            raise UserError.of(f"there is no operation {unknown[0]} to tune", "", f"name some of {', '.join(OPERATIONS)}")
        rows = sorted(set(wanted.rows))
        todo = [
            (operation, number)
            for operation in OPERATIONS
            if operation in (wanted.operations or OPERATIONS)
            for number in rows
            if operation == ATTENTION or (number <= candidates.MOST and reading_of(self._linear(operation)) is not None)
        ]
        trials: list[Trial] = []
        found: dict[str, list[tuple[int, Any]]] = {}
        for operation, number in todo:
            trial, best = self._trial(operation, number, len(trials) + 1, len(todo))
            trials.append(trial)
            found.setdefault(operation, []).append((number, best))
            wanted.told(trial)
        for operation, best_rows in found.items():
            table = self._with(table, operation, best_rows)
        device = this_device(self._device)
        heading = tables.Found(
            device.name, device.capability, device.triton, torch.__version__, date.today().isoformat(), wanted.model
        )
        tried = ", ".join(found) or "nothing"
        text = f"# Found by `{tables.TUNE}`: {tried}, for {', '.join(map(str, rows))} tokens. What else is here is\n"
        text += f"# {self._backend.table.origin}.\n\n"
        return Tuned(text + tables.written(heading, table), tables.own_file(device), tuple(trials))

    def _linear(self, operation: str) -> TorchLinear:
        linear = self._head if operation == "head" else getattr(self._layer, operation)
        assert isinstance(linear, TorchLinear)
        return linear

    def _trial(self, operation: str, rows: int, number: int, of: int) -> tuple[Trial, Way | Division]:
        ours, twin = self._inputs(rows)
        right = twin.results(self._twin, operation)
        table, value_bytes = self._backend.table, self._dtype.itemsize
        if operation == ATTENTION:
            ways: Sequence[Any] = candidates.divisions(table, rows)
            told = f"{operation} over {self._context} tokens, {self._spec.num_kv_heads} heads of {self._spec.head_dim}"
            allowed = ALLOWED[value_bytes]
        else:
            linear = self._linear(operation)
            format = format_of(linear)
            ways = candidates.ways(table, linear.role, rows, linear.in_features, format, value_bytes)
            told = f"{operation}, {linear.out_features} x {linear.in_features}, {linear.format}"
            allowed = ALLOWED[2 if format == "fp8" else value_bytes]

        def result(way: Any) -> list[Tensor]:
            for each in right:  # memory that is had again is no result
                for dtype in {self._dtype, torch.float32}:
                    torch.full_like(each, math.nan, dtype=dtype)
            return ours.results(self._backend.divided_by(self._with(table, operation, [(rows, way)])), operation)

        def seconds(way: Any) -> float:
            ours.afresh()
            backend = self._backend.divided_by(self._with(table, operation, [(rows, way)]))
            return self._clock(lambda: ours.run(backend, operation))

        best = fastest(ways, lambda way: difference(result(way), right), allowed, seconds)
        trial = Trial(
            number, of, told, rows, len(ways), best.skipped, best.wrong, best.before, best.seconds, described(best.candidate)
        )
        return trial, best.candidate

    def _with(self, table: Table, operation: str, rows: list[tuple[int, Any]]) -> Table:
        """The table with these rows; of its own keeps those for more tokens."""
        most = rows[-1][0]
        if operation == ATTENTION:
            return replace(table, attention=merged([*rows, *(each for each in table.attention if each[0] > most)]))
        linear = self._linear(operation)
        format, columns, value_bytes = format_of(linear), linear.in_features, self._dtype.itemsize
        present = table.ways[format][linear.role]
        for tokens, _ in present.rows:
            if tokens > most:
                fitted = tiling(table, linear.role, tokens, columns, format, value_bytes)
                rows = [*rows, (tokens, candidates.row_of(fitted, value_bytes))]
        roles = {**table.ways[format], linear.role: Ways(columns, without_tail(merged(rows)))}
        return replace(table, ways={**table.ways, format: roles})

    @property
    def _context(self) -> int:
        return min(self._wanted.context, self._spec.max_positions)

    def _inputs(self, rows: int) -> tuple[Inputs, Inputs]:
        spec, page_size = self._spec, self._wanted.page_size
        batch = decode_step(rows, self._context, page_size)
        pages = int(batch.page_table.max()) + 1
        device, dtype = self._device, self._dtype
        generator = torch.Generator(device).manual_seed(rows)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device).to(dtype)

        cache = (pages, page_size, spec.num_kv_heads, spec.head_dim)
        widths = {"hidden": spec.hidden, "q": spec.q_width, "mixed": spec.q_width, "gated": spec.intermediate}
        given = {name: drawn(rows, width) for name, width in widths.items()}
        given |= {"keys": drawn(*cache), "values": drawn(*cache)}
        slots = torch.from_numpy(batch.slots).to(device)
        made = []
        for backend, layer, norm, head, number in (
            (self._backend, self._layer, self._norm, self._head, dtype),
            (self._twin, self._twin_layer, Norm(self._norm.weight.float(), self._norm.eps), self._twin_head, torch.float32),
        ):
            kv = PagedKV(spec, pages, page_size, number, device)
            values = {name: value.to(number) for name, value in given.items()}
            step = backend.upload(batch, spec, kv)
            made.append(Inputs(layer, norm, head, kv, step, slots, values, values["hidden"].clone()))
        return made[0], made[1]


@dataclass(frozen=True)
class Best:
    candidate: Any
    seconds: float
    before: float  # of the first
    skipped: tuple[str, ...]
    wrong: tuple[str, ...]


def fastest(ways: Sequence[Any], error: Callable[[Any], float], allowed: float, seconds: Callable[[Any], float]) -> Best:
    """Of those that compile, fit and compute what is right. The first is in force: it stays unless another gains enough."""
    took: dict[int, float] = {}
    skipped, wrong = [], []
    for number, way in enumerate(ways):
        try:
            off = error(way)
            if not off <= allowed:
                wrong.append(f"{described(way)}: off by {off:.2g} of the largest value, where {allowed:.2g} is allowed")
                continue
            took[number] = seconds(way)
        except TritonError as failure:
            skipped.append(f"{described(way)}: {type(failure).__name__}")
        except RuntimeError as failure:
            if "PassManager" not in str(failure):  # how the compiler gives up; anything else is the device's
                raise
            skipped.append(f"{described(way)}: the compiler gave up")
    before = took.get(0, math.inf)
    quickest = min(took, key=took.__getitem__, default=0)
    chosen = quickest if took.get(quickest, math.inf) < WORTH * before else 0
    return Best(ways[chosen], took.get(chosen, math.inf), before, tuple(skipped), tuple(wrong))


def difference(got: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """The largest of any result, as a share of the largest value that is right; not a number where one is none."""
    shares = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(got, right, strict=True)]
    return math.nan if any(map(math.isnan, shares)) else max(shares)


def described(way: Way | Division) -> str:
    if way == candidates.LIBRARY:
        return "library"
    held = ("outputs", "take", "warps", "early")  # what else a row has matters to what is read only
    names: tuple[str, ...] = ("keys", "warps", "shortest", "stages")
    if isinstance(way, Way):
        names = held if way.way in ("sums", "held") else (*held, "stages", "rows")
    told = " ".join(f"{name} {value}" for name in names if (value := getattr(way, name)) is not False)
    return f"{way.way} ({told})" if isinstance(way, Way) else f"divided ({told})"


def merged(rows: Sequence[tuple[int, Candidate]]) -> tuple[tuple[int, Candidate], ...]:
    """Of neighbours that are alike the last."""
    return tuple(list(alike)[-1] for _, alike in groupby(rows, key=lambda row: row[1]))


def without_tail(rows: tuple[tuple[int, Way], ...]) -> tuple[tuple[int, Way], ...]:
    """Behind the last row the library is taken anyway."""
    while len(rows) > 1 and rows[-1][1] == candidates.LIBRARY:
        rows = rows[:-1]
    return rows
