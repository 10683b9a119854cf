"""``docs/operating/metrics.md``: every metric of the HTTP server, as it describes itself."""

from __future__ import annotations

from core.interfaces.request import EngineStats
from frontends.openai_http.metrics import Metrics

PAGE = """\
<!-- Generated from frontends/openai_http/metrics.py by docs/build.py: change that, then run `nox -s docs -- --write`. -->

# Metrics

`GET /metrics`, in Prometheus' text format; on a port of its own with `--metrics-port`. The engine's own counts are asked for
at each scrape. Buckets suit a model that makes a token in a millisecond or in a hundred.

| metric | type | what |
|---|---|---|
{rows}
"""


def page() -> str:
    rows = []
    for family in Metrics().families(EngineStats(), up=True):
        name = family.name + ("_total" if family.type == "counter" else "")
        rows.append(f"| `{name}` | {family.type} | {family.documentation} |")
    return PAGE.format(rows="\n".join(rows))
