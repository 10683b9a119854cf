"""Whole engines whose decode steps are recorded to their end, and leave the next one behind: on a CPU, nothing but later."""

import pytest
import torch

from core.engine.engine import Engine, EngineConfig
from core.engine.runner import Runner
from core.interfaces.sampler import Sampler
from core.models.decoder import Decoder
from core.testing.inputs import random_weights, tiny_spec
from core.testing.recording import FixedShapes, RecordingFake
from graph_cuda.graphs import CudaGraphs
from graph_cuda.sizes import Sizes
from kv_blocks.policies import GlobalBlocks
from plain.eager import Eager
from plain.private import PrivatePages
from prefill_chunked.chunked import ChunkedPrefill
from tests.engine.fake_runner import drain, request, tokens_of

PAGES, PAGE = 40, 4


class Keyed(Sampler):
    """Gumbel noise of a kind, by seed, position and token."""

    def sample(self, logits, rows):
        given = {name: torch.tensor(getattr(rows, name).astype("i8" if name == "seeds" else "f4")) for name in NAMES}
        return draw(logits, **given)

    def on_device(self, device):
        return lambda logits, rows: draw(logits, **{name: getattr(rows, name) for name in NAMES})


NAMES = ("temperature", "seeds", "positions")


def draw(logits, temperature, seeds, positions):
    keys = seeds[:, None] * 7919 + positions[:, None].long() * 104_729 + torch.arange(logits.shape[1])
    noise = ((keys * 2_654_435_761) % 100_003).float() / 100_003 + 1e-6
    gumbel = -torch.log(-torch.log(noise))
    return (logits + temperature[:, None].float() * gumbel).argmax(-1)


def tokens(graph, *, ahead):
    spec = tiny_spec()
    backend = FixedShapes("cpu", "float32", 1)
    backend.ahead = ahead
    runner = Runner(
        Decoder.load(spec, random_weights(spec).values(), backend), backend.kv_cache(spec, PAGES, PAGE), Keyed(), graph
    )
    config = EngineConfig(
        max_num_seqs=4,
        max_model_len=64,
        max_num_batched_tokens=64,
        max_waiting=100,
        page_size=PAGE,
        num_pages=PAGES,
        eos_token_ids=(2, 3, 5, 7),
        vocab=spec.vocab,
    )
    engine = Engine(config, runner, ChunkedPrefill(), PrivatePages(), GlobalBlocks())
    for number in range(9):
        how = {"temperature": (0.0, 0.7, 1.3)[number % 3], "seed": number, "max_tokens": 14 + number % 4}
        if number == 4:
            how |= {"presence_penalty": 0.7}
        if number == 7:
            how |= {"min_tokens": 9}
        engine.add(request(f"r{number}", [(5 * number + index) % 90 for index in range(1 + 4 * number)], **how))
    events = drain(engine)
    return {name: tokens_of(own) for name, own in events.items()}


class Counting(CudaGraphs):
    repeated = 0

    def repeat(self):
        outcome = super().repeat()
        self.repeated += outcome is not None
        return outcome


@pytest.mark.parametrize("ahead", [False, True])
def test_tokens_are_those_of_steps_one_after_the_other(ahead):
    graph = Counting(Sizes((1, 2, 4)), RecordingFake(), lazily=False, warmups=1, shared_pool=True)
    assert tokens(graph, ahead=ahead) == tokens(Eager(), ahead=False)
    assert graph.recorder.recordings == 6  # each size twice: greedy, and drawn
    assert graph.repeated > 10
    assert graph.replayed > graph.repeated
