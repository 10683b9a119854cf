"""Trying candidates for the table that divides kernels: each has to compute what plain torch computes before it is timed.

An operation runs as in a step: as the backend's own method, on a backend that has the candidate's table. The quickest by
themselves are then timed amid a few layers, where kernels overlap: what counts is how long those take.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import groupby
from typing import Any, TypeVar

import torch
from torch import Tensor
from triton.errors import TritonError  # type: ignore[import-untyped, import-not-found, unused-ignore]

from core.compute.torch_backend.attention import PagedKV
from core.compute.torch_backend.backend import Norm, TorchBackend
from core.compute.torch_backend.linear import Target, TorchLinear
from core.compute.torch_backend.triton import candidates, tables
from core.compute.torch_backend.triton.backend import TritonBackend, format_of, reading_of, this_device
from core.compute.torch_backend.triton.clock import EventClock, Recorder
from core.compute.torch_backend.triton.tiling import Division, Table, Way, Ways, tiling
from core.compute.torch_backend.triton.trial import ATTENTION, OPERATIONS, Inputs, decode_step, in_float32
from core.errors import UserError
from core.interfaces.compute import Layer
from core.interfaces.model import DecoderSpec
from core.interfaces.tuning import Clock, Trial, Tuned, Tuning

LAYERS = 6  # whose time decides: as many as show how kernels overlap
FINALISTS = 4  # of the quickest by themselves, beside what is in force and the first of each way
WORTH = 0.98  # of the time of what is in force: less of a gain is noise
ALLOWED = {2: 3e-2, 4: 1e-4}
"""Difference of any result, as a share of the largest value in it; by the bytes of the number format."""

Candidate = TypeVar("Candidate", Way, Division)


class Tuner:
    def __init__(
        self,
        backend: TritonBackend,
        target: Target,
        spec: DecoderSpec,
        layers: Sequence[Layer],
        norm: Norm,
        head: TorchLinear,
        wanted: Tuning,
        overlap: bool,
    ) -> None:
        """``overlap``: whether the backend places programs early where a row of its table says so."""
        self._backend, self._wanted, self._overlap = backend, wanted, overlap
        self._table = backend.table
        self._layers, self._norm, self._head = tuple(layers[:LAYERS]), norm, head
        self._spec = replace(spec, num_layers=len(self._layers))
        layer = self._layers[0]
        self._device, self._dtype = target.device, target.dtype
        self._clock: Clock = wanted.clock or EventClock(target.device)
        self._recorder = Recorder(target.device)
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
        wanted = self._wanted
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
        for operation, number in todo:
            trial, self._table = self._trial(operation, number, len(trials) + 1, len(todo))
            trials.append(trial)
            wanted.told(trial)
        device = this_device(self._device)
        heading = tables.Found(
            device.name, device.capability, device.triton, torch.__version__, date.today().isoformat(), wanted.model
        )
        tried = ", ".join(dict.fromkeys(operation for operation, _ in todo)) or "nothing"
        text = f"# Found by `{tables.TUNE}`: {tried}, for {', '.join(map(str, rows))} tokens. What else is here is\n"
        text += f"# {self._backend.table.origin}.\n\n"
        return Tuned(text + tables.written(heading, self._table), tables.own_file(device), tuple(trials))

    def _linear(self, operation: str) -> TorchLinear:
        linear = self._head if operation == "head" else getattr(self._layers[0], operation)
        assert isinstance(linear, TorchLinear)
        return linear

    def _trial(self, operation: str, rows: int, number: int, of: int) -> tuple[Trial, Table]:
        """The table that is in force behind it, too."""
        ours, twin = self._inputs(rows)
        right = twin.results(self._twin, operation)
        table, value_bytes = self._table, self._dtype.itemsize
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
            return ours.results(divided(way), operation)

        def divided(way: Any) -> TritonBackend:
            return self._backend.divided_by(self._with(operation, rows, way))

        def alone(way: Any) -> float:
            ours.afresh()
            backend = divided(way)
            return self._clock(lambda: ours.run(backend, operation))

        def amid_layers(way: Any) -> float:
            ours.afresh()
            backend = divided(way)  # whose memory what is recorded uses: it is kept until the clock has stopped
            return self._clock(self._recorder(lambda: ours.run_layers(backend, operation)))

        variant = otherwise_overlapped if self._overlap else None
        best = fastest(ways, lambda way: difference(result(way), right), allowed, alone, amid_layers, variant)
        trial = Trial(
            number, of, told, rows, best.tried, best.skipped, best.wrong, best.before, best.seconds, described(best.candidate)
        )
        stays = best.candidate == ways[0]
        return trial, table if stays else self._with(operation, rows, best.candidate)

    def _with(self, operation: str, tokens: int, way: Any) -> Table:
        """The table that is in force, with this for so many tokens."""
        table = self._table
        if operation == ATTENTION:
            return replace(table, attention=inserted(table.attention, tokens, way, behind=table.attention[-1][1]))
        linear = self._linear(operation)
        format, columns, value_bytes = format_of(linear), linear.in_features, self._dtype.itemsize
        present = table.ways[format][linear.role]
        rows = present.rows
        if present.columns != columns:  # as they are fitted to this width
            fits = ((most, tiling(table, linear.role, most, columns, format, value_bytes)) for most, _ in rows)
            rows = tuple((most, candidates.row_of(each, value_bytes)) for most, each in fits)
        rows = without_tail(inserted(rows, tokens, way, behind=candidates.LIBRARY))
        roles = {**table.ways[format], linear.role: Ways(columns, rows)}
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
        for backend, layers, norm, head, number in (
            (self._backend, self._layers, self._norm, self._head, dtype),
            (self._twin, (self._twin_layer,), Norm(self._norm.weight.float(), self._norm.eps), self._twin_head, torch.float32),
        ):
            kv = PagedKV(replace(spec, num_layers=len(layers)), pages, page_size, number, device)
            values = {name: value.to(number) for name, value in given.items()}
            step = backend.upload(batch, spec, kv)
            made.append(Inputs(layers, norm, head, kv, step, slots, values, values["hidden"].clone()))
        return made[0], made[1]


@dataclass(frozen=True)
class Best:
    candidate: Any
    seconds: float
    before: float  # of the first
    tried: int
    skipped: tuple[str, ...]
    wrong: tuple[str, ...]


def fastest(
    ways: Sequence[Any],
    error: Callable[[Any], float],
    allowed: float,
    alone: Callable[[Any], float],
    amid_layers: Callable[[Any], float],
    variant: Callable[[Any], Any] | None = None,
) -> Best:
    """Of those that compile, fit and compute what is right. The first is in force: it stays unless another gains enough.

    ``alone`` says which are worth timing ``amid_layers``, with a ``variant`` of each; that decides.
    """
    skipped, wrong = [], []

    def timed(ways: Iterable[Any], seconds: Callable[[Any], float], known: Collection[Any] = ()) -> dict[Any, float]:
        took = {}
        for way in ways:
            try:
                off = 0.0 if way in known else error(way)
                if off <= allowed:
                    took[way] = seconds(way)
                else:
                    wrong.append(f"{described(way)}: off by {off:.2g} of the largest value, where {allowed:.2g} is allowed")
            except TritonError as failure:
                skipped.append(f"{described(way)}: {type(failure).__name__}")
            except RuntimeError as failure:
                if "PassManager" not in str(failure):  # how the compiler gives up; anything else is the device's
                    raise
                skipped.append(f"{described(way)}: the compiler gave up")
        return took

    present = ways[0]
    took_alone = timed(ways, alone)
    last = dict.fromkeys(finalists(took_alone, present))
    if variant is not None:
        last |= dict.fromkeys(map(variant, tuple(last)))
    took = timed(last, amid_layers, known=took_alone)
    before = took.get(present, math.inf)
    quickest = min(took, key=took.__getitem__, default=present)
    chosen = quickest if took.get(quickest, math.inf) < WORTH * before else present
    tried = len(dict.fromkeys((*ways, *last)))
    return Best(chosen, took.get(chosen, math.inf), before, tried, tuple(skipped), tuple(wrong))


def finalists(took: Mapping[Any, float], present: Any) -> list[Any]:
    """What is in force, the quickest, and the quickest of each way: alone, one that is slow in a step may win all places."""
    order = sorted((way for way in took if way != present), key=took.__getitem__)
    firsts = {getattr(way, "way", ""): way for way in reversed(order)}
    stay = {present, *order[:FINALISTS], *firsts.values()}
    return [way for way in took if way in stay]


def otherwise_overlapped(way: Way | Division) -> Way | Division:
    """Its programs placed early or not, where a row of the table says which."""
    if isinstance(way, Way) and way.way != "read":
        return way
    return replace(way, overlap=not way.overlap)


def difference(got: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """The largest of any result, as a share of the largest value that is right; not a number where one is none."""
    shares = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(got, right, strict=True)]
    return math.nan if any(map(math.isnan, shares)) else max(shares)


def described(way: Way | Division) -> str:
    if way == candidates.LIBRARY:
        return "library"
    held = ("outputs", "take", "warps", "early")  # what else a row has matters to what is read only
    names: tuple[str, ...] = ("keys", "warps", "shortest", "stages", "programs")
    if isinstance(way, Way):
        names = held if way.way in ("sums", "held") else (*held, "stages", "rows")
    told = " ".join(f"{name} {value}" for name in names if (value := getattr(way, name)) is not False)
    return f"{way.way} ({told})" if isinstance(way, Way) else f"divided ({told})"


def inserted(
    rows: Sequence[tuple[int, Candidate]], tokens: int, way: Candidate, *, behind: Candidate
) -> tuple[tuple[int, Candidate], ...]:
    """What is found for so many tokens holds for fewer, too, as far as there is no other row and down to more than half as
    many. All others keep what they had. ``behind``: what holds for more tokens than there are rows for.
    """
    half = tokens // 2
    all_rows = dict(rows)
    if half and not any(half <= most < tokens for most in all_rows):
        all_rows[half] = next((each for most, each in rows if most >= half), behind)
    all_rows[tokens] = way
    return merged(sorted(all_rows.items(), key=lambda row: row[0]))


def merged(rows: Sequence[tuple[int, Candidate]]) -> tuple[tuple[int, Candidate], ...]:
    """Of neighbours that are alike the last."""
    return tuple(list(alike)[-1] for _, alike in groupby(rows, key=lambda row: row[1]))


def without_tail(rows: tuple[tuple[int, Way], ...]) -> tuple[tuple[int, Way], ...]:
    """Behind the last row the library is taken anyway."""
    while len(rows) > 1 and rows[-1][1] == candidates.LIBRARY:
        rows = rows[:-1]
    return rows
