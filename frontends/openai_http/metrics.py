"""What ``GET /metrics`` tells, in a registry of its own so that two servers in one process do not mix.

The engine counts its own things; here are only what a client feels: statuses and latencies. The buckets suit a model that makes
a token in a millisecond or in a hundred.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from core.interfaces.request import EngineStats
from frontends.openai_http.tracing import note_first_token

_TOKEN_BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5)
_FIRST_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 30.0)
_WHOLE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)

Samples = list[tuple[str, str, str, list[tuple[str, dict[str, str], float]]]]
"""(name, type, documentation, (name of the sample, labels, value)...) of each family, as JSON has it."""


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "dovetail_http_requests", "HTTP requests answered, by route and status", ("route", "status"), registry=self.registry
        )
        self.in_flight = Gauge("dovetail_http_generations_in_flight", "generation calls being answered", registry=self.registry)
        self.first_token = Histogram(
            "dovetail_time_to_first_token_seconds",
            "from the request's arrival to its first token",
            buckets=_FIRST_BUCKETS,
            registry=self.registry,
        )
        self.inter_token = Histogram(
            "dovetail_inter_token_latency_seconds",
            "between two tokens of one choice; tokens that arrive together share their gap",
            buckets=_TOKEN_BUCKETS,
            registry=self.registry,
        )
        self.whole = Histogram(
            "dovetail_e2e_request_latency_seconds",
            "from the request's arrival to its last token",
            buckets=_WHOLE_BUCKETS,
            registry=self.registry,
        )

    def render(self, stats: EngineStats, *, up: bool, others: Sequence[Samples] = ()) -> bytes:
        """``others``: what the other processes at this door have counted."""
        return generate_latest(_Told(self.families(stats, up=up, others=others)))

    def families(self, stats: EngineStats, *, up: bool, others: Sequence[Samples] = ()) -> list[Metric]:
        return [*self.counted(others), *_of_engine(stats, up=up)]

    def samples(self) -> Samples:
        """What is counted in this process, for another's ``render``."""
        return [
            (family.name, family.type, family.documentation, [(each.name, each.labels, each.value) for each in _told(family)])
            for family in self.registry.collect()
        ]

    def counted(self, others: Sequence[Samples] = ()) -> list[Metric]:
        """What is counted in all of them."""
        return _summed([self.samples(), *others])


class Stopwatch:
    """The latencies of one call, measured where its deltas arrive."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._started = perf_counter()
        self._first_seen = False
        self._last: dict[tuple[int, int], float] = {}

    def tokens(self, number: int, index: int, count: int) -> None:
        if count < 1:
            return
        now, choice = perf_counter(), (number, index)
        if (last := self._last.get(choice)) is not None:
            self._metrics.inter_token.observe((now - last) / count)
        elif not self._first_seen:
            self._first_seen = True
            note_first_token()
            self._metrics.first_token.observe(now - self._started)
        self._last[choice] = now

    def done(self) -> None:
        self._metrics.whole.observe(perf_counter() - self._started)


def _told(family: Metric) -> Iterator[Sample]:
    """All but when it was made, for which Prometheus' text format would have a gauge of its own."""
    return (sample for sample in family.samples if not sample.name.endswith("_created"))


def _summed(parts: Iterable[Samples]) -> list[Metric]:
    """Of counters, gauges and histograms."""
    families: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for part in parts:
        for name, kind, doc, samples in part:
            families.setdefault(name, Metric(name, doc, kind))
            found = values.setdefault(name, {})
            for sample, labels, value in samples:
                key = sample, tuple(labels.items())
                found[key] = found.get(key, 0.0) + value
    for name, family in families.items():
        for (sample, label_items), value in values[name].items():
            family.add_sample(sample, dict(label_items), value)
    return list(families.values())


class _Told(Collector):
    """Families as they are."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _of_engine(stats: EngineStats, *, up: bool) -> Iterable[Metric]:
    """A snapshot of the engine as metrics."""
    used = max(0, stats.pages_total - stats.pages_free - stats.pages_cached)
    for name, doc, value in (
        ("engine_up", "1 while the engine answers", int(up)),
        ("requests_running", "sequences in the running batch", stats.num_running),
        ("requests_waiting", "sequences that wait to be admitted", stats.num_waiting),
        ("kv_pages", "KV pages there are", stats.pages_total),
        ("kv_pages_free", "KV pages that hold nothing", stats.pages_free),
        ("kv_pages_used", "KV pages that running sequences use", used),
        ("kv_pages_cached", "KV pages kept for reuse by the cache policy, reclaimable", stats.pages_cached),
    ):
        yield GaugeMetricFamily(f"dovetail_{name}", doc, value=float(value))
    for name, doc, total in (
        ("prompt_tokens", "prompt tokens taken in", stats.prompt_tokens),
        ("cached_prompt_tokens", "prompt tokens found in shared pages", stats.cached_prompt_tokens),
        ("generation_tokens", "tokens generated", stats.generation_tokens),
        ("preemptions", "sequences put back because pages ran out", stats.preemptions),
        ("draft_tokens", "tokens guessed ahead and computed", stats.draft_tokens),
        ("accepted_draft_tokens", "tokens guessed ahead and right", stats.accepted_draft_tokens),
        ("engine_steps", "steps of the engine", stats.steps),
        ("engine_steps_replayed", "steps that were recorded before and replayed", stats.steps_replayed),
        ("engine_step_seconds", "seconds spent in steps", stats.step_seconds),
        ("engine_schedule_seconds", "seconds spent choosing what a step computes", stats.schedule_seconds),
    ):
        yield CounterMetricFamily(f"dovetail_{name}", doc, value=float(total))
    finished = CounterMetricFamily("dovetail_requests_finished", "sequences ended, by reason", labels=("reason",))
    for reason, count in sorted(stats.requests_finished.items()):
        finished.add_metric((reason,), count)
    yield finished
