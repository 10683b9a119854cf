"""64 clients stream from the demo, a third hang up midway: nothing leaks, nothing sticks, memory is flat."""

import asyncio
import os
import threading
import time

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from core.bench.load import LoadOptions, run_load
from tests.must_show.served import serving

SECONDS = float(os.environ.get("SOAK_SECONDS", "40"))  # the promise is of a minute


def gauges(url):
    text = httpx.get(f"{url}/metrics", timeout=10).text
    families = text_string_to_metric_families(text)
    return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}


@pytest.mark.demo
@pytest.mark.soak
@pytest.mark.timeout(300)
def test_64_clients():
    with serving("--max-model-len", "1024", "--max-num-seqs", "64", "--log-level", "warning") as server:
        processes = [psutil.Process(server.process.pid), server.engine]
        options = LoadOptions(
            url=server.url, clients=64, seconds=SECONDS, disconnect=1 / 3, prompt_words=30, max_tokens=48, patience=60
        )
        memory = []
        stop = threading.Event()

        def watch():
            while not stop.wait(1):
                memory.append((time.monotonic(), sum(process.memory_info().rss for process in processes)))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            report = asyncio.run(run_load(options))
        finally:
            stop.set()
            watcher.join()
        tally = report.tally
        assert not tally.errors, tally.errors
        assert tally.completed > 20, tally
        assert tally.hung_up > 5, tally

        deadline = time.monotonic() + 10
        while (left := gauges(server.url)) and left["dovetail_requests_running"] + left["dovetail_requests_waiting"]:
            assert time.monotonic() < deadline, f"stuck requests: {left}"
            time.sleep(0.1)
        assert left["dovetail_kv_pages_free"] == left["dovetail_kv_pages"] > 0, left
        assert left["dovetail_kv_pages_used"] == left["dovetail_kv_pages_cached"] == 0, left

        began = memory[0][0]
        early = max(rss for when, rss in memory if SECONDS * 0.3 < when - began < SECONDS * 0.5)
        late = max(rss for when, rss in memory if when - began > SECONDS * 0.8)
        assert late < early * 1.05 + 16e6, f"{early / 1e6:.0f} MB at half time, {late / 1e6:.0f} MB at the end"
        assert server.terminate() == 0
