"""Steps on the device: what an uploaded one holds, and how a static one takes it over and pads the rest."""

import numpy as np
import pytest
import torch

from core.compute.torch_backend.triton.backend import TritonBackend
from core.compute.torch_backend.triton.step import upload
from core.interfaces.graph import StepShape
from core.models.decoder import Decoder
from core.testing.inputs import PagedSequences, random_weights, tiny_spec

pytestmark = pytest.mark.usefixtures("few_programs", "padding_may_be_anything")
FIELDS = ("token_ids", "positions", "slots", "context_lens", "query_starts")


def test_an_uploaded_step_is_the_batch():
    paged = PagedSequences(40, 8)
    paged.step({0: [1] * 20, 1: [2] * 3})
    batch = paged.step({0: [3], 1: [4], 2: [5] * 70, 3: [6] * 5})
    step = upload(batch, 32, torch.device("cpu"))
    for name in FIELDS:
        assert getattr(step, name).tolist() == getattr(batch, name).tolist()
    assert step.logit_rows.tolist() == batch.logit_rows.tolist()
    pages = batch.page_table.shape[1]
    assert step.page_table[:, :pages].tolist() == batch.page_table.tolist()
    assert step.tiles.tolist() == [[2, 2], [2, 34], [2, 66], [3, 72]]
    assert (step.shape, step.num_logits) == (StepShape("mixed", 77, 4, decodes=2, rows=4), 4)


def test_decodes_have_no_list_of_rows():
    paged = PagedSequences(40, 8)
    paged.step({0: [1], 1: [2]})
    step = upload(paged.step({0: [3], 1: [4]}), 32, torch.device("cpu"))
    assert (step.logit_rows, step.num_logits, len(step.tiles)) == (None, 2, 0)


@pytest.fixture(scope="module")
def model():
    spec = tiny_spec(num_layers=1)
    backend = TritonBackend("cpu", "float32", threads=1)
    return spec, backend, Decoder.load(spec, random_weights(spec).values(), backend)


@pytest.mark.parametrize("kind", ["prompts", "decode", "mixed"])
def test_a_static_step_gives_what_the_step_gives_and_leaves_other_pages_alone(model, kind):
    spec, backend, decoder = model
    kv, paged = backend.kv_cache(spec, 40, 8), PagedSequences(40, 8)
    if kind == "mixed":
        decoder.forward(backend.upload(paged.step({0: [1] * 30, 1: [5, 6], 2: [8] * 9}), spec, kv), kv)
        works = [{0: [3], 1: [4] * 34, 3: [5] * 3}, {2: [7], 0: [5] * 2, 1: [6]}, {4: [9] * 40}, {2: [1]}, {5: [1], 6: [2]}]
        static = backend.static_step(StepShape("mixed", 48, 6, decodes=3, rows=6), spec, kv)
    elif kind == "prompts":
        works = [{0: [1, 2, 3], 1: list(range(41))}, {2: [7]}, {3: [8], 4: [9]}]
        static = backend.static_step(StepShape("prompts", 48, 3), spec, kv)
    else:
        decoder.forward(backend.upload(paged.step({0: [1] * 30, 1: [5, 6], 2: [8] * 9}), spec, kv), kv)
        works = [{0: [3], 1: [4], 2: [5]}, {2: [7], 0: [5]}]
        static = backend.static_step(StepShape("decode", 4, 4), spec, kv)
    for work in works:
        batch = paged.step(work)
        step = backend.upload(batch, spec, kv)
        assert static.shape.holds(step.shape)
        static.fill(step)
        for name in FIELDS if kind != "mixed" else ():
            held, given = getattr(static, name), getattr(batch, name)
            assert held[: len(given)].tolist() == given.tolist()
        before = kv._memory.clone()
        found = decoder.forward(static, kv)[: len(work)]
        changed = (kv._memory != before).any(dim=(0, 1, 4, 5)).flatten().nonzero()[:, 0]
        assert set(changed.tolist()) <= set(batch.slots.tolist())
        expected = decoder.forward(step, kv)
        assert torch.allclose(found, expected, atol=1e-5)


def test_a_mixed_step_has_its_padding_behind_what_decodes_and_behind_the_rest(model):
    spec, backend, _ = model
    kv, paged = backend.kv_cache(spec, 40, 8), PagedSequences(40, 8)
    paged.step({0: [1] * 3, 1: [2] * 9})
    batch = paged.step({0: [3], 1: [4] * 2, 2: [5] * 33})
    static = backend.static_step(StepShape("mixed", 43, 6, decodes=3, rows=6), spec, kv)
    static.fill(backend.upload(batch, spec, kv))
    assert static.token_ids.tolist() == [3, 0, 0, *[4] * 2, *[5] * 33, *[0] * 5]
    assert static.slots[[1, 2, 38, 42]].tolist() == [-1] * 4
    assert static.context_lens.tolist() == [4, 0, 0, 11, 33, 0]
    assert static.query_starts.tolist() == [0, 1, 2, 3, 5, 38, 38]
    assert static.tiles.tolist() == [[3, 3], [4, 5], [4, 21], [4, 37], [-1, -1]]
    assert static.logit_rows.tolist() == [0, 4, 37, 0, 0, 0]
    assert [row[0] for row in static.page_table[[0, 3, 4]].tolist()] == batch.page_table[:, 0].tolist()


def test_a_new_static_step_writes_nowhere(model):
    spec, backend, decoder = model
    kv = backend.kv_cache(spec, 8, 8)
    shapes = StepShape("decode", 2, 2), StepShape("prompts", 9, 2), StepShape("mixed", 9, 2, decodes=1, rows=2)
    for shape in shapes:
        assert decoder.forward(backend.static_step(shape, spec, kv), kv).shape == (2, spec.vocab)
    assert not np.any(kv._memory.numpy())


def test_a_step_has_its_sampling_parameters_and_follows_the_tokens_before(model):
    spec, backend, _ = model
    kv, paged = backend.kv_cache(spec, 40, 8), PagedSequences(40, 8)
    batch = paged.step({number: [3] * (1 + number) for number in range(3)})
    batch.token_ids[[0, 3]] = -3, -1
    rows = batch.sampling
    rows.temperature[:], rows.top_p[:], rows.min_p[:], rows.top_k[:] = 0.5, 0.25, 0.125, [1, 2, 3]
    rows.seeds[:], rows.positions[:] = 2**63 + np.arange(3, dtype=np.uint64), [7, 8, 9]
    step = backend.upload(batch, spec, kv)
    backend.follow(step, torch.tensor([70, 80, 90]))
    assert step.token_ids.tolist() == [90, 3, 3, 70, 3, 3]
    static = backend.static_step(StepShape("prompts", 32, 20), spec, kv)
    static.fill(step)
    for each in (backend.sampling(step), backend.sampling(static)):
        for name in ("temperature", "top_p", "min_p", "top_k", "positions"):
            column = getattr(each, name)
            assert column[:3].tolist() == getattr(rows, name).tolist()
            assert not column[3:].any()
        assert each.seeds[:3].tolist() == rows.seeds.view(np.int64).tolist()


def test_an_advanced_step_is_the_one_filled_next(model):
    spec, backend, _ = model
    kv, paged = backend.kv_cache(spec, 40, 8), PagedSequences(40, 8)
    paged.step({0: [1] * 12, 1: [5, 6], 2: [8] * 5})
    going, anew = (backend.static_step(StepShape("decode", 4, 4), spec, kv) for _ in range(2))
    work = {0: [3], 1: [4], 2: [5]}
    for number in range(3):
        batch = paged.step(work)
        batch.sampling.positions[:] = batch.positions + 1
        anew.fill(backend.upload(batch, spec, kv))
        if number:
            for name in FIELDS:
                assert getattr(going, name).tolist() == getattr(anew, name).tolist(), (number, name)
            assert going.sampling.positions.tolist() == anew.sampling.positions.tolist()
        going.fill(backend.upload(batch, spec, kv))
        assert going.advance(torch.tensor([30 + number, 40, 50, 60]))
        work = {0: [30 + number], 1: [40], 2: [50]}
    assert not backend.static_step(StepShape("prompts", 4, 4), spec, kv).advance(torch.zeros(4))
