"""The Grafana dashboard asks for metrics that there are."""

import json
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from core.interfaces.request import EngineStats
from frontends.openai_http.metrics import Metrics

DASHBOARD = Path(__file__).parents[2] / "docs" / "operating" / "grafana.json"


def test_every_metric_it_asks_for_is_told():
    asked = {
        name
        for panel in json.loads(DASHBOARD.read_text())["panels"]
        for target in panel["targets"]
        for name in re.findall(r"dovetail_\w+", target["expr"])
    }
    told = {
        family.name + suffix
        for family in text_string_to_metric_families(Metrics().render(EngineStats(), up=True).decode())
        for suffix in {"counter": ("_total",), "histogram": ("_bucket",)}.get(family.type, ("",))
    }
    assert asked <= told
    assert len(asked) > 15
