"""How long the host works on a decode step, the model left out. No test: ``python -m tests.engine.host_time``."""

from __future__ import annotations

from time import perf_counter

import numpy as np

from core.engine.engine import Engine, EngineConfig
from core.interfaces.compute import Sampled, StepBatch
from core.interfaces.request import Request, SamplingParams
from kv_blocks.policies import GlobalBlocks
from plain.private import PrivatePages
from prefill_chunked.chunked import ChunkedPrefill

VOCAB = 103_424


class Same:
    """Tokens that are there at once, and always the same."""

    def __init__(self, number: int) -> None:
        self._sampled = Sampled(np.full(number, 5, np.int64))

    def wait(self) -> Sampled:
        return self._sampled


class NoModel:
    ahead, replayed = True, 0

    def launch(self, batch: StepBatch) -> Same:
        return Same(len(batch.sampling))

    def check(self) -> None:
        pass

    def close(self) -> None:
        pass


def measure(batch: int, steps: int, context: int = 1024, **params) -> tuple[float, float]:
    """Microseconds of a decode step: (median, 99th of a hundred)."""
    config = EngineConfig(
        max_num_seqs=batch,
        max_model_len=32_768,
        max_num_batched_tokens=8192,
        max_waiting=batch,
        page_size=64,
        num_pages=batch * (-(-(context + steps + 2) // 64) + 1) + 512,
        eos_token_ids=(2,),
        vocab=VOCAB,
    )
    engine = Engine(config, NoModel(), ChunkedPrefill(), PrivatePages(), GlobalBlocks())
    for index in range(batch):
        prompt = [(index + i) % VOCAB for i in range(context - index % 64)]
        engine.add(Request(request_id=f"request-{index}", prompt_token_ids=prompt, params=SamplingParams(**params)))
    while len(engine.step()) < batch:  # until all decode
        pass
    times = np.empty(steps)
    for index in range(steps):
        began = perf_counter()
        events = engine.step()
        times[index] = perf_counter() - began
        assert len(events) == batch
    engine.close()
    return float(np.median(times) * 1e6), float(np.percentile(times, 99) * 1e6)


def main() -> None:
    kinds = {
        "greedy": {"temperature": 0.0},
        "sampled": {"temperature": 0.8, "top_p": 0.95},
        "penalized": {"temperature": 0.8, "presence_penalty": 0.5},
    }
    print("host time of a decode step, microseconds: median (p99)")
    for name, params in kinds.items():
        cells = []
        for batch in (1, 128, 512):
            median, worst = measure(batch, 300, max_tokens=2000, ignore_eos=True, **params)
            cells.append(f"batch {batch:>3}: {median:7.1f} ({worst:7.1f})")
        print(f"{name:>10}  " + "   ".join(cells))


if __name__ == "__main__":
    main()
