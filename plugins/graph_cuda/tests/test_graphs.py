"""Recording and replaying, through a capture API that works without a device (``core.testing.recording``)."""

import numpy as np
import pytest
import torch

from core import testing
from core.errors import UserError
from core.interfaces.graph import Outcome, StepShape
from core.models.decoder import Decoder
from core.testing.inputs import PagedSequences, random_weights, tiny_spec
from core.testing.recording import FixedShapes, RecordingFake
from graph_cuda.graphs import CudaGraphs
from graph_cuda.sizes import Sizes, decode_sizes, mixed_sizes, prompt_sizes

DECODE = (1, 2, 4)
PROMPTS = ((16, 1), (16, 2), (32, 1), (32, 2))
MIXED = ((8, 2, 2), (8, 2, 4), (32, 3, 4))


class Run:
    """An engine in miniature, twice over equal weights and pages: one eager, one through the graphs."""

    def __init__(self, *, decode=DECODE, prompts=(), mixed=(), room=None, backend=FixedShapes, **how):
        self.recorder = RecordingFake(room)
        how = {"lazily": False, "warmups": 2, "shared_pool": True} | how
        self.graphs = CudaGraphs(Sizes(decode, prompts, mixed), self.recorder, **how)
        self.launched = 0
        spec = tiny_spec()
        self.backend = backend("cpu", "float32", 1)
        self.kvs = [self.backend.kv_cache(spec, 24, 8) for _ in range(2)]
        self.spec, self.decoder = spec, Decoder.load(spec, random_weights(spec).values(), self.backend)
        self.paged = PagedSequences(24, 8)
        self.prepared = self.graphs.prepare(self.forward, lambda shape: self.backend.static_step(shape, spec, self.kvs[1]))
        self.at_start = self.launched

    def forward(self, step):
        self.launched += 1
        return Outcome(self.decoder.forward(step, self.kvs[1]))

    def __call__(self, work, logits="last"):
        """The logits through the graphs, which have been found equal to the eager ones, as have all pages."""
        batch = self.paged.step(work, logits=logits)
        upload = self.backend.upload
        expected = self.decoder.forward(upload(batch, self.spec, self.kvs[0]), self.kvs[0])
        found = self.prepared(upload(batch, self.spec, self.kvs[1])).logits
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, rtol=0, atol=1e-5)
        for eager, graphed in zip(*((*kv.keys, *kv.values) for kv in self.kvs), strict=True):
            assert (eager[:24] - graphed[:24]).abs().max() < 1e-5, "padding wrote into a page, or a token did not"
        return found.numpy()


class TestDecodeScope(testing.GraphBackendContract):
    tolerance = 1e-5  # a static step sums attention over whole page tables
    prompts = mixed = ()
    how = {"lazily": False, "warmups": 1, "shared_pool": True}

    def make(self):
        return CudaGraphs(Sizes(DECODE, self.prompts, self.mixed), RecordingFake(), **self.how)

    def backend(self):
        return FixedShapes("cpu", "float32", 1)


class TestFullScope(TestDecodeScope):
    prompts = PROMPTS


class TestMixedScope(TestDecodeScope):
    mixed = MIXED


class TestLazily(TestFullScope):
    how = {"lazily": True, "warmups": 1, "shared_pool": True}


class TestPoolsOfTheirOwn(TestFullScope):
    how = {"lazily": False, "warmups": 1, "shared_pool": False}


def decodes(number, token=5):
    return {sequence: [token + sequence] for sequence in range(number)}


def begun(number, **how):
    """A run whose sequences have contexts of several lengths."""
    run = Run(**how)
    for sequence in range(number):
        run({sequence: list(range(3 + 5 * sequence))})
    run.launched = 0
    return run


def test_each_size_is_recorded_once_at_the_start_and_nothing_is_launched_afterwards():
    run = begun(4)
    assert (run.recorder.warmed, run.recorder.recordings, run.at_start) == (6, 3, 9)
    for number in (1, 2, 3, 4, 1, 3):
        run(decodes(number, token=7 * number))
    assert run.launched == 0
    assert (run.recorder.recordings, run.recorder.replays, run.graphs.replayed) == (3, 6, 6)


def test_lazily_a_size_is_recorded_when_its_first_step_comes():
    run = begun(4, lazily=True, warmups=1)
    assert run.at_start == run.recorder.recordings == 0
    run(decodes(3))
    assert (run.recorder.recordings, run.launched) == (1, 2)
    run(decodes(4))
    run(decodes(3))
    assert (run.recorder.recordings, run.launched, run.recorder.replays) == (1, 2, 3)
    run(decodes(1))
    assert run.recorder.recordings == 2


@pytest.mark.parametrize(("shared", "pools"), [(True, 1), (False, 3)])
def test_recordings_share_one_pool_unless_told_otherwise(shared, pools):
    assert len(set(map(id, Run(shared_pool=shared).recorder.pools))) == pools


def test_logits_of_padding_are_not_handed_out_and_do_not_reach_others():
    run = begun(3, decode=(4,))
    logits = run(decodes(3))
    assert logits.shape == (3, 96)
    assert np.isfinite(logits).all()
    whole = next(iter(run.graphs._recorded.values())).outcome.logits
    assert torch.isnan(whole[3]).all(), "attention gives NaN for padding here, so the fourth row was none"


def test_a_short_step_after_a_long_one_leaves_nothing_of_it_behind():
    run = begun(4, decode=(4,))
    run(decodes(4))
    for _ in range(8):  # over the end of a page
        run(decodes(1))
    run(decodes(4))


def test_logits_may_be_written_to():
    run = begun(2)
    run(decodes(2))[:] = np.nan
    run(decodes(2))


def test_decode_scope_runs_prompts_and_what_is_beyond_the_sizes_eagerly_and_says_so():
    run = begun(4, decode=(1, 2))
    run(decodes(4))
    run(decodes(2) | {5: [1, 2, 3]})
    run({6: [4]})
    run(decodes(2))
    assert run.launched == 3
    assert run.graphs.describe().endswith(
        "s; 1 steps replayed, 7 run eagerly (1 of more than 2 sequences, 6 that do more than decode)"
    )


def test_full_scope_replays_prompts_that_begin_in_the_step():
    run = Run(prompts=PROMPTS)
    assert run.recorder.recordings == 7
    run.launched = 0
    run({0: list(range(9))})
    run({1: [1, 2, 3], 2: list(range(20))})
    run({3: [7]})
    run({4: list(range(32))})
    assert (run.launched, run.recorder.replays) == (0, 4)
    run(decodes(4))
    assert (run.launched, run.recorder.replays) == (0, 5)


def test_full_scope_runs_other_prompts_eagerly_and_says_so():
    run = Run(prompts=PROMPTS)
    run.launched = 0
    run({0: list(range(33))})
    run({1: [1], 2: [2], 3: [3]})
    run({0: [5], 4: [1, 2]})
    run({4: [6, 7]})  # goes on behind pages that are there: nothing that a recording of prompts looks at
    assert run.launched == 4
    assert run.graphs.describe() == (
        "CUDA graphs, recorded at the start: 3 of 3 sizes of decode steps (1 2 4), "
        "4 of 4 sizes of prompts, in tokens by sequences (16x1 16x2 32x1 32x2); 7 MiB, "
        f"{run.graphs._seconds:.1f} s; 0 steps replayed, 4 run eagerly "
        "(2 of more or longer prompts, 2 of prompts beside decodes)"
    )


def test_mixed_scope_replays_prompts_chunks_and_decodes_beside_each_other():
    run = begun(4, mixed=MIXED)
    before = run.recorder.replays
    run({0: [5], 4: [1, 2, 3]})
    run({4: [6] * 5, 1: [7], 5: [1]})  # goes on behind pages that are there
    run({number: [8] for number in range(3)} | {6: [9] * 20, 7: [10] * 12})
    run({8: [1] * 32})
    run({9: [2], 10: [3]})  # prompts of a token each
    run({number: [4] for number in range(4)})
    assert (run.launched, run.recorder.replays - before) == (0, 6)


def test_mixed_scope_replays_what_wants_no_logits_and_runs_eagerly_what_wants_many():
    run = begun(2, mixed=MIXED)
    run({0: [5], 3: [1] * 5}, logits="none")
    assert run.launched == 0
    run({0: [5], 3: [1] * 8}, logits="all")
    run({4: [1] * 33})
    run({number: [5, 6] for number in range(10, 14)})
    assert run.launched == 3
    assert run.graphs.describe().endswith(
        "3 run eagerly (2 of more or longer prompts, 1 that want several rows of logits a sequence)"
    )


def test_mixed_scope_pads_to_the_fewest_tokens():
    sizes = Sizes((1, 2), mixed=MIXED)

    def padded(tokens, sequences, decodes, rows=None):
        shape = sizes.holding(StepShape("mixed", tokens, sequences, decodes=decodes, rows=sequences if rows is None else rows))
        return shape and (shape.tokens, shape.sequences, shape.decodes)

    assert padded(10, 4, 2) == (10, 4, 2)
    assert padded(5, 4, 3) == (12, 6, 4)
    assert padded(9, 2, 0) == (36, 7, 4)
    assert padded(9, 5, 4, rows=6) == (12, 6, 4)
    assert padded(9, 5, 4, rows=7) == (36, 7, 4)
    assert padded(37, 5, 4) is padded(20, 8, 4) is None
    assert sizes.holding(StepShape("decode", 2, 2)) == StepShape("decode", 2, 2)
    assert sizes.holding(StepShape("decode", 3, 3)).decodes == sizes.holding(StepShape("prompts", 8, 2)).decodes * 2 == 4


def test_a_step_is_padded_as_little_as_can_be():
    sizes = Sizes((1, 2, 4, 8), prompt_sizes(64, (1, 2, 4), 8))

    def padded(kind, tokens, sequences):
        shape = sizes.holding(StepShape(kind, tokens, sequences))
        return shape and (shape.tokens, shape.sequences)

    assert [padded("decode", number, number) for number in (1, 2, 3, 5, 8, 9)] == [(1, 1), (2, 2), (4, 4), (8, 8), (8, 8), None]
    assert padded("prompts", 16, 3) == (16, 4)
    assert padded("prompts", 17, 1) == (32, 1)
    assert padded("prompts", 65, 1) is padded("prompts", 9, 5) is padded("mixed", 3, 2) is None


def test_too_little_memory_at_the_start_is_told_with_remedies():
    with pytest.raises(UserError) as refused:
        Run(room=2)
    (problem,) = refused.value.problems
    assert problem.what == (
        "there is not enough memory to record a step of 1 tokens, after 2 of 3 steps: the fake's memory is full"
    )
    assert problem.where == "graph_cuda.capture_sizes"
    assert problem.remedies == (
        "lower --gpu-memory-utilization: KV pages leave more memory then",
        "record fewer sizes: --graph-cuda-capture-sizes 1,2,4,8, or a lower --max-num-seqs",
        "run steps eagerly: drop --use-cudagraph",
    )


def test_too_little_memory_later_is_logged_once_and_the_size_runs_eagerly(caplog):
    run = begun(4, lazily=True, warmups=1, room=1)
    run(decodes(1))
    run(decodes(4))
    run(decodes(4))
    run(decodes(1))
    assert [record.message for record in caplog.records] == [
        "steps of 4 tokens are run eagerly from now on, since recording one failed: the fake's memory is full"
    ]
    assert run.graphs.describe().endswith("2 steps replayed, 6 run eagerly (2 for want of memory, 4 that do more than decode)")


class NoStaticSteps(FixedShapes):
    def static_step(self, shape, spec, kv):
        return None


@pytest.mark.parametrize("lazily", [True, False])
def test_a_backend_without_static_steps_is_refused(lazily):
    with pytest.raises(UserError, match="the steps of this compute backend cannot be recorded: it gives no static steps"):
        Run(backend=NoStaticSteps, lazily=lazily)


def test_what_was_done_is_logged_at_the_end(caplog):
    run = begun(1)
    run(decodes(1))
    with caplog.at_level("INFO", logger="dovetail.engine"):
        run.graphs.close()
    assert caplog.records[-1].message.endswith("1 steps replayed, 1 run eagerly (1 that do more than decode)")


# --- the sizes --------------------------------------------------------------------------------------------------------


def test_small_sizes_are_exact_and_large_ones_coarse():
    assert decode_sizes((), "small_exact", 128) == (1, 2, 3, 4, 5, 6, 7, 8, 16, 24, 32, 48, 64, 96, 128)
    assert decode_sizes((), "small_exact", 100) == (1, 2, 3, 4, 5, 6, 7, 8, 16, 24, 32, 48, 64, 96, 100)
    assert decode_sizes((), "small_exact", 3) == (1, 2, 3)
    assert decode_sizes((), "small_exact", 4096)[-3:] == (256, 384, 512)


def test_fastdeploys_sizes():
    assert decode_sizes((), "fastdeploy", 128) == (1, 2, 4, *range(8, 129, 8))
    assert len(decode_sizes((), "fastdeploy", 128)) == 19
    assert decode_sizes((), "fastdeploy", 512)[-3:] == (448, 480, 512)


def test_given_sizes_are_taken_as_far_as_the_server_goes():
    assert decode_sizes((8, 1, 4), "small_exact", 128) == (1, 4, 8)
    assert decode_sizes((1, 64, 600), "small_exact", 32) == (1, 32)
    assert decode_sizes((600,), "small_exact", 1000) == (600,)


def test_mixed_sizes_have_room_for_short_prompts_and_for_all_that_decode():
    assert mixed_sizes(100, 3) == ((32, 3, 3), (64, 3, 3), (100, 3, 3))
    sizes = mixed_sizes(2048, 256)
    assert sorted({tokens for tokens, _, _ in sizes}) == [32, 64, 128, 256, 512, 768, 1024, 1536, 2048]
    assert {decodes for _, _, decodes in sizes} == {8, 64, 256}
    assert {(tokens, number) for tokens, number, _ in sizes if tokens in (32, 1024)} == {(32, 4), (1024, 64)}


def test_prompts_double_up_to_the_longest():
    assert prompt_sizes(40, (1, 4), 8) == ((16, 1), (16, 4), (32, 1), (32, 4), (40, 1), (40, 4))
    assert prompt_sizes(2, (1, 4), 8) == ((2, 1),)
    assert prompt_sizes(16, (4, 64), 8) == ((16, 4), (16, 8))
