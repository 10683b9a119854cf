"""On a device: what is replayed is what runs eagerly, in the real shape, in a whole engine too. ``pytest -m gpu``."""

import gc
import re

import numpy as np
import pytest

from core import testing
from core.compose import compose
from core.compose.build import load_model
from core.interfaces.graph import Outcome
from core.interfaces.request import SamplingParams
from core.testing.inputs import PagedSequences
from frontends.offline import LLM
from graph_cuda.graphs import CudaGraphs
from graph_cuda.sizes import Sizes

pytestmark = pytest.mark.gpu

MODEL = "random:ernie-4.5-0.3b"
PAGES = 1024
SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32)
PROMPTS = ((64, 1), (64, 4), (256, 4))
MIXED = ((64, 4, 8), (512, 8, 8), (512, 8, 32))


def graphs(decode, prompts=(), mixed=(), *, lazily=False):
    from graph_cuda.cuda import TorchCuda

    return CudaGraphs(Sizes(decode, prompts, mixed), TorchCuda(), lazily=lazily, warmups=2, shared_pool=True)


class TestContract(testing.GraphBackendContract):
    """Of a decoder in miniature, in float32. A padded step multiplies more rows, which another kernel may do."""

    tolerance = 1e-4
    prompts = mixed = ()
    lazily = False

    def make(self):
        return graphs((1, 2, 4), self.prompts, self.mixed, lazily=self.lazily)

    def backend(self):
        from core.compute.torch_backend.triton.backend import TritonBackend

        return TritonBackend("cuda:0", "float32")


class TestContractOfFullScope(TestContract):
    prompts = ((16, 1), (16, 2), (64, 2))


class TestContractOfMixedScope(TestContract):
    mixed = ((8, 2, 2), (32, 3, 4))


class TestContractLazily(TestContractOfFullScope):
    lazily = True


@pytest.fixture(scope="module")
def decoder():
    made = load_model(compose(["--model", MODEL, "--device", "cuda", "--dtype", "bfloat16"]))
    yield made
    made.backend.close()


class Replayed:
    """The real shape: every step through the graphs, then its static step eagerly, then as it was uploaded."""

    def __init__(self, decoder, prompts=(), mixed=()):
        backend, spec = decoder.backend, decoder.spec
        self.decoder, self.kv, self.paged = decoder, backend.kv_cache(spec, PAGES, 64), PagedSequences(PAGES, 64)
        self.graphs = graphs(SIZES, prompts, mixed)

        def forward(step):
            return Outcome(decoder.forward(step, self.kv))

        self.forward = forward
        self.prepared = self.graphs.prepare(forward, lambda shape: backend.static_step(shape, spec, self.kv))

    def __call__(self, work):
        backend, before = self.decoder.backend, self.graphs.replayed
        batch = self.paged.step(work)
        step = backend.upload(batch, self.decoder.spec, self.kv)
        found = backend.to_host(self.prepared(step).logits).copy()
        if self.graphs.replayed > before:
            recording = self.graphs._recorded[self.graphs._sizes.holding(batch.shape)]
            eager = backend.to_host(self.forward(recording.static).logits)[: len(work)]
            assert np.array_equal(found, eager), "replay gives other bits than the same step run eagerly"
        plain = backend.to_host(self.forward(backend.upload(batch, self.decoder.spec, self.kv)).logits)
        error, scale = np.abs(found - plain).max(), np.abs(plain).max()
        assert np.isfinite(found).all()
        assert error <= 0.03 * scale, f"{work.keys()}: off by {error / scale:.3f} of the largest logit"
        return self.graphs.replayed > before, batch.shape.sequences in SIZES and np.array_equal(found, plain)


def test_decode_steps_replay_bit_for_bit_in_sizes_that_are_recorded_and_padded(decoder):
    run, random = Replayed(decoder), np.random.default_rng(0)
    for sequence in range(32):
        run({sequence: random.integers(0, 1000, 3 + 17 * sequence).tolist()})
    for number in (1, 2, 3, 5, 8, 9, 13, 16, 20, 32, 1, 7, 31):
        work = {sequence: [int(random.integers(0, 1000))] for sequence in random.permutation(32)[:number].tolist()}
        replayed, equal = run(work)
        assert replayed
        assert equal or number not in SIZES, f"{number} sequences, a size that is recorded: other bits than the uploaded step"
    run({0: [1], 40: [5, 6, 7]})
    assert run.graphs.replayed == 13


def test_prompts_replay_bit_for_bit_in_full_scope(decoder):
    run, random = Replayed(decoder, PROMPTS), np.random.default_rng(1)
    sequence = 0
    for lengths in ((64,), (1,), (30,), (64, 64, 64, 64), (9, 100), (3, 2, 1), (200, 20, 20), (256,)):
        work = {sequence + n: random.integers(0, 1000, length).tolist() for n, length in enumerate(lengths)}
        sequence += len(lengths)
        replayed, _ = run(work)
        assert replayed, lengths
    assert run({sequence: [1] * 257})[0] is False
    assert run({number: [3] for number in range(6)})[0] is True


def test_prompts_chunks_and_decodes_replay_bit_for_bit_in_mixed_scope(decoder):
    run, random = Replayed(decoder, mixed=MIXED), np.random.default_rng(1)

    def some(length):
        return random.integers(0, 1000, length).tolist()

    for work in (
        {0: some(200), 1: some(64), 2: some(1), 3: some(1)},
        {0: some(1), 4: some(60), 1: some(2)},
        {4: some(400), 2: some(1), 1: some(1)},
        {5: some(300), 4: some(100), **{number: some(1) for number in range(4)}},
        {number: some(10) for number in range(6, 14)},
        {14: some(30), **{number: some(1) for number in range(14)}},
    ):
        assert run(work)[0], {sequence: len(tokens) for sequence, tokens in work.items()}
    assert run({20: some(513)})[0] is False


def tokens(prompts, rounds=1, **settings):
    """Greedy tokens of a whole engine, and how its steps were launched."""
    from core.engine.runner import log

    lines = []
    log.addFilter(lambda record: lines.append(record.getMessage()) or True)
    params = SamplingParams(temperature=0, max_tokens=48, ignore_eos=True)
    level = log.level
    log.setLevel("INFO")
    try:
        with LLM(MODEL, device="cuda", max_model_len=2048, num_gpu_blocks_override=PAGES, max_num_seqs=32, **settings) as llm:
            found = [[out.outputs[0].token_ids for out in llm.generate(prompts, params)] for _ in range(rounds)]
            cached = llm.stats().cached_prompt_tokens
    finally:
        log.setLevel(level)
        log.filters.clear()
        gc.collect()
    return found, cached, lines


def prompts(number, length):
    random = np.random.default_rng(2)
    shared = random.integers(0, 1000, 150).tolist()
    return [shared + random.integers(0, 1000, length + 7 * index).tolist() for index in range(number)]


def test_a_whole_engine_gives_the_same_tokens_with_cached_prefixes():
    asked = prompts(8, 5)
    eager, _, how = tokens(asked, 2, enable_prefix_caching=True)
    assert any("eager" in line for line in how)
    graphed, cached, how = tokens(asked, 2, enable_prefix_caching=True, use_cudagraph=True)
    assert cached >= 8 * 128
    assert graphed == eager
    assert any("of decode steps" in line and " 0 steps replayed" in line for line in how)
    *_, said = how
    replayed, eagerly = (int(re.search(rf"(\d+) {what}", said)[1]) for what in ("steps replayed", "run eagerly"))
    # Of two rounds of 48 all but the prompts'; requests that arrive while a step runs make one more of either.
    assert replayed >= 94, how
    assert 2 <= eagerly <= 4, how


def test_a_whole_engine_gives_the_same_tokens_in_mixed_scope_with_chunks_and_cached_prefixes():
    """In float32: every step is replayed, in a size that holds it."""
    how = {"dtype": "float32", "enable_prefix_caching": True, "enable_chunked_prefill": True, "max_num_batched_tokens": 512}
    asked = prompts(12, 5)
    eager, _, _ = tokens(asked, 2, **how)
    graphed, cached, lines = tokens(asked, 2, **how, use_cudagraph=True, graph_cuda={"scope": "mixed"})
    assert graphed == eager
    assert cached >= 12 * 128
    assert any(" 0 run eagerly" in line and " 0 steps replayed" not in line for line in lines), lines


def test_a_whole_engine_gives_the_same_tokens_in_full_scope_and_padded():
    """In float32, where rounding decides no token: twelve sequences run in a step for sixteen, their prompts in one for 512."""
    asked = [prompt[-10 - 3 * number :] for number, prompt in enumerate(prompts(12, 5))]
    eager, _, _ = tokens(asked, dtype="float32")
    graphed, _, how = tokens(
        asked, dtype="float32", use_cudagraph=True, graph_cuda={"scope": "full", "prefill_sequences": [1, 12]}
    )
    assert graphed == eager
    assert any("48 steps replayed, 0 run eagerly" in line for line in how), how
