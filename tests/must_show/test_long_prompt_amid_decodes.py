"""A prompt of 4,000 tokens comes while eight requests generate: how long none of them gets a token."""

import threading
import time
from itertools import pairwise

import httpx
import numpy as np
import openai
import pytest

from tests.must_show.served import serving

STREAMS = 8
LONG = 4000


class Stream(threading.Thread):
    """One request that generates until it is told to stop; ``times`` is when each token came."""

    def __init__(self, url, number):
        super().__init__()
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        self.number = number
        self.times = []
        self.runs, self.enough = threading.Event(), threading.Event()

    def run(self):
        with self.client.completions.create(
            model="demo", prompt=[100 + self.number] * 8, max_tokens=2000, stream=True, extra_body={"ignore_eos": True}
        ) as chunks:
            for _ in chunks:
                self.times.append(time.monotonic())
                if len(self.times) >= 3:
                    self.runs.set()
                if self.enough.is_set():
                    return


def largest_gap(*flags):
    """Seconds, over all streams, while the long prompt was computed."""
    with serving("--max-model-len", "4352", "--max-num-seqs", "16", "--log-level", "warning", *flags) as server:
        streams = [Stream(server.url, number) for number in range(STREAMS)]
        for stream in streams:
            stream.start()
        try:
            assert all(stream.runs.wait(60) for stream in streams)
            prompt = np.random.default_rng(1).integers(100, 40000, LONG).tolist()
            sent = time.monotonic()
            body = {"model": "demo", "prompt": prompt, "max_tokens": 1}
            answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=240)
            assert answer.json()["usage"]["prompt_tokens"] == LONG
            answered = time.monotonic()
        finally:
            for stream in streams:
                stream.enough.set()
            for stream in streams:
                stream.join(60)
                stream.client.close()
    gaps = []
    for stream in streams:
        times = [moment for moment in stream.times if moment > sent - 1]
        within = [later - earlier for earlier, later in pairwise(times) if later > sent and earlier < answered]
        gaps.append(max(within))
    return max(gaps)


@pytest.mark.demo
@pytest.mark.perf
def test_no_decode_waits_for_more_than_one_chunk():
    whole = largest_gap()
    chunked = largest_gap("--enable-chunked-prefill", "--max-num-batched-tokens", "256")
    print(f"largest gap between tokens: {whole * 1e3:.0f} ms without, {chunked * 1e3:.0f} ms with chunks")
    assert whole >= 5 * chunked
