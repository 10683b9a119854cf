"""Decode steps of ERNIE-4.5-0.3B, eager and replayed: python plugins/graph_cuda/tests/decode_speed.py, on a CUDA device.

"step": one step's launch and its wait, the median of many. "engine": a whole step of the offline engine, greedy, at the batch.
"""

import gc
import statistics
import sys
import time

import numpy as np
import torch

from core.compose import compose
from core.compose.build import load_model
from core.interfaces.graph import Outcome
from core.interfaces.request import SamplingParams
from core.testing.inputs import PagedSequences
from frontends.offline import LLM
from graph_cuda.cuda import TorchCuda
from graph_cuda.graphs import CudaGraphs
from graph_cuda.sizes import Sizes, decode_sizes

MODEL = "random:ernie-4.5-0.3b"
BATCHES = (1, 3, 8, 32, 128)
CONTEXT = 256


def step_ms() -> dict[tuple[str, int], float]:
    decoder = load_model(compose(["--model", MODEL, "--device", "cuda"]))
    backend, spec = decoder.backend, decoder.spec
    kv, paged = backend.kv_cache(spec, 4096, 64), PagedSequences(4096, 64)

    def forward(step):
        return Outcome(decoder.forward(step, kv))

    found = {}
    ways = {"eager": forward}
    for name in ("small_exact", "fastdeploy"):
        graphs = CudaGraphs(Sizes(decode_sizes((), name, 128)), TorchCuda(), lazily=False, warmups=2, shared_pool=True)
        ways[name] = graphs.prepare(forward, lambda shape: backend.static_step(shape, spec, kv))
        sys.stdout.write(f"{graphs.describe()}\n")
    for sequence in range(max(BATCHES)):
        forward(backend.upload(paged.step({sequence: [1 + sequence] * CONTEXT}), spec, kv))
    for number in BATCHES:
        batch = paged.step({sequence: [5] for sequence in range(number)})
        for name, way in ways.items():
            times = []
            for _ in range(60):
                torch.cuda.synchronize()
                began = time.perf_counter()
                way(backend.upload(batch, spec, kv))
                torch.cuda.synchronize()
                times.append(time.perf_counter() - began)
            found[name, number] = statistics.median(times[10:]) * 1e3
    return found


def engine_ms(**settings) -> dict[int, float]:
    random, found = np.random.default_rng(0), {}
    with LLM(MODEL, device="cuda", max_num_seqs=128, **settings) as llm:
        for number in BATCHES:
            prompts = random.integers(0, 1000, (number, CONTEXT)).tolist()

            def run(tokens, prompts=prompts):
                began = time.perf_counter()
                llm.generate(prompts, SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True))
                return time.perf_counter() - began

            run(4)
            found[number] = min(run(136) - run(8) for _ in range(2)) / 128 * 1e3
    gc.collect()
    torch.cuda.empty_cache()
    return found


if __name__ == "__main__":
    sys.stdout.write(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    steps = step_ms()
    gc.collect()
    torch.cuda.empty_cache()
    engines = {"eager": engine_ms(), "graphs": engine_ms(use_cudagraph=True)}
    sys.stdout.write(
        "batch: ms of a step eager, small_exact, fastdeploy; of the engine's step eager, graphs; tokens/s with graphs\n"
    )
    for number in BATCHES:
        step = ", ".join(f"{steps[name, number]:.3f}" for name in ("eager", "small_exact", "fastdeploy"))
        eager, graphed = engines["eager"][number], engines["graphs"][number]
        sys.stdout.write(f"{number}: {step}; {eager:.3f}, {graphed:.3f}; {number / graphed * 1e3:.0f}\n")
