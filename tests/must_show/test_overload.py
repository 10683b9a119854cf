"""Four times as many clients as there is room for: whoever is let in is served as on a calm day, the rest are told so."""

import asyncio
import os

import pytest

from core.bench.load import LoadOptions, run_load
from tests.must_show.served import serving

SECONDS = float(os.environ.get("OVERLOAD_SECONDS", "15"))  # the promise is of a minute
ROOM = 4  # at once
QUEUE = 4


@pytest.mark.demo
@pytest.mark.soak
@pytest.mark.timeout(300)
def test_overload():
    limits = ("--max-num-seqs", str(ROOM), "--max-waiting", str(QUEUE))
    with serving("--max-model-len", "512", *limits, "--log-level", "warning") as server:

        def load(clients, seconds):
            options = LoadOptions(url=server.url, clients=clients, seconds=seconds, prompt_words=20, max_tokens=40, patience=60)
            report = asyncio.run(run_load(options))
            assert not report.tally.errors, report.tally.errors
            return report

        load(ROOM, 2)
        calm = load(ROOM, SECONDS / 3)
        crowded = load(4 * (ROOM + QUEUE), SECONDS)
        after = load(ROOM, SECONDS / 3)
    assert calm.tally.refused == after.tally.refused == 0
    assert crowded.tally.refused > 0
    assert crowded.tally.completed > 2 * ROOM
    usual, then = (report.percentiles(report.tally.per_token)[50] for report in (calm, crowded))
    assert then <= 2 * usual, f"{then * 1000:.1f} ms a token, {usual * 1000:.1f} ms unloaded"
    assert after.output_per_second >= 0.75 * calm.output_per_second, (calm.output_per_second, after.output_per_second)
