"""Native operations against float64 and against each other: bounds, page boundaries, and rows that hang on no other row."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from core.compute.torch_backend.backend import Norm
from core.compute.torch_backend.linear import DenseLinear
from core.compute.torch_backend.native import check, library
from core.compute.torch_backend.native.backend import NativeBackend
from core.compute.torch_backend.native.linear import AT_A_TIME, NativeDense, whole
from core.compute.torch_backend.native.memory import CHUNK, HUGE, HugePages
from core.compute.torch_backend.native.step import NativeKV, in_eight_bits, out_of_eight_bits, upload
from core.interfaces.compute import ComputeBackend
from core.interfaces.model import Weight, WeightName
from core.models.decoder import Decoder
from core.testing import reference
from core.testing.inputs import PagedSequences, random_weights, tiny_spec

TOLERANCE = {"float32": 3e-6, "bfloat16": 1.5e-2}
TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16}
both = pytest.mark.parametrize("dtype", TOLERANCE)


@pytest.fixture(autouse=True)
def two_threads():
    library.start(2)


class Sequences:
    """Random q, k and v: keys and values in pages, and beside them in float64."""

    def __init__(self, spec, dtype, page_size, tokens, eight=False):
        self.backend = NativeBackend(dtype, threads=2, kv_in_eight_bits=eight)
        self.spec, self.dtype = spec, TORCH[dtype]
        self.kv = self.backend.kv_cache(spec, -(-tokens // page_size) + 16, page_size)
        assert isinstance(self.kv, NativeKV)
        for pages in (*self.kv.keys, *self.kv.values):
            pages.fill_(-1 if eight else torch.nan)  # bits of a NaN: whoever reads a slot that nobody wrote will show it
        self.paged = PagedSequences(self.kv.num_pages, page_size, seed=page_size)
        self.random = torch.Generator()
        self.keys, self.values = {}, {}

    def drawn(self, heads, kind, sequence, count):
        """Hanging on the sequence alone: what it is, and what it has behind it."""
        self.random.manual_seed(kind + 3 * (sequence + 100 * len(self.keys.get(sequence, ()))))
        return torch.randn(count, heads, self.spec.head_dim, generator=self.random).to(self.dtype)

    def run(self, counts):
        """[T, q_width] of a step, compared."""
        spec = self.spec
        batch = self.paged.step({sequence: [0] * count for sequence, count in counts.items()})
        q, k, v = (
            torch.cat([self.drawn(heads, kind, sequence, counts[sequence]) for sequence in self.paged.order])
            for kind, heads in enumerate((spec.num_heads, spec.num_kv_heads, spec.num_kv_heads))
        )
        step = upload(batch)
        self.kv.write(0, torch.from_numpy(batch.slots), k, v)
        got = self.backend.attention(q.flatten(1), self.kv, 0, step)
        if self.kv.eight:  # what is held is what has to be read
            k, v = (out_of_eight_bits(in_eight_bits(each)) for each in (k, v))
        tolerance = TOLERANCE["bfloat16" if self.dtype == torch.bfloat16 else "float32"]
        for row, sequence in enumerate(self.paged.order):
            own = slice(batch.query_starts[row], batch.query_starts[row + 1])
            for kept, new in ((self.keys, k), (self.values, v)):
                kept[sequence] = np.concatenate([*([kept[sequence]] if sequence in kept else []), new[own].double().numpy()])
            expected = reference.attend(q[own].double().numpy(), self.keys[sequence], self.values[sequence])
            error = np.abs(got[own].double().numpy() - expected.reshape(-1, spec.q_width)).max()
            assert error <= tolerance * max(1.0, np.abs(expected).max()), f"sequence {sequence} of {counts}"
        return got


@both
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(16, 2, 128), (4, 4, 16), (6, 1, 80), (9, 3, 64)])
def test_attention_of_prompts_in_pieces_and_decodes(dtype, heads, kv_heads, width):
    spec = tiny_spec(num_layers=1, num_heads=heads, num_kv_heads=kv_heads, head_dim=width)
    sequences = Sequences(spec, dtype, 16, 1500)
    sequences.run({0: 300, 1: 64, 2: 5})
    sequences.run({1: 1, 0: 65, 2: 130, 3: 1})
    sequences.run({0: 1, 1: 1, 3: 3, 2: 40})


@both
@pytest.mark.parametrize(("heads", "kv_heads", "width", "page_size"), [(16, 2, 128, 64), (6, 1, 80, 7), (4, 4, 16, 1)])
def test_attention_over_keys_and_values_in_eight_bits(dtype, heads, kv_heads, width, page_size):
    spec = tiny_spec(num_layers=1, num_heads=heads, num_kv_heads=kv_heads, head_dim=width)
    sequences = Sequences(spec, dtype, page_size, 1500, eight=True)
    sequences.run({0: 300, 1: 64, 2: 5})
    sequences.run({1: 1, 0: 65, 2: 130, 3: 1})
    sequences.run({0: 1, 1: 1, 3: 3, 2: 40})


def test_a_head_in_eight_bits_is_off_by_half_of_one_step_at_most():
    values = torch.randn(5, 3, 48) * torch.tensor([1e-30, 1e-3, 1.0, 300.0, 0.0])[:, None, None]
    held = in_eight_bits(values)
    assert (held.dtype, held.shape) == (torch.int8, (5, 3, 52))
    step = values.abs().amax(-1, keepdim=True).double() / 127
    assert ((out_of_eight_bits(held).double() - values.double()).abs() <= 0.501 * step).all()


@both
@pytest.mark.parametrize("apart", [False, True])
def test_what_the_kernels_hold_in_eight_bits_is_what_torch_would(dtype, apart):
    """Behind a projection of their own and beside one of torch's; the bits of the turned keys may differ in float32's last."""
    whole = [NativeBackend(dtype, threads=2, kv_in_eight_bits=eight) for eight in (False, True)]
    held = []
    for backend in whole:
        made = {weight.name.role: weight for weight in check.weights()}
        weights = {role: backend.place(weight, check.SPEC, None) for role, weight in made.items()}
        weight = weights["qkv"]
        if apart:
            weight = DenseLinear("qkv", torch.from_numpy(made["qkv"].parts[0]).to(TORCH[dtype]), "")
        kv = backend.kv_cache(check.SPEC, 60, check.PAGE)
        step = backend.upload(check.step([(0, 75)]), check.SPEC, kv)
        backend.qkv(backend.embed(weights["embed"], step), weights["norm"], weight, kv, 0, step)
        held.append(kv)
    wide, eight = held
    for exact, ours in ((wide.keys[0], eight.keys[0]), (wide.values[0], eight.values[0])):
        largest = exact.float().abs().amax(-1, keepdim=True)
        allowed = largest * (0.51 / 127 + (2**-8 if dtype == "bfloat16" else 1e-5))
        assert ((out_of_eight_bits(ours) - exact.float()).abs() <= allowed).all()
        assert largest.max() > 0.1


@both
@pytest.mark.parametrize("page_size", [1, 7, 16, 64])
def test_attention_around_the_ends_of_pages_blocks_and_splits(dtype, page_size):
    spec = tiny_spec(num_layers=1, num_heads=8, num_kv_heads=2, head_dim=32)
    lengths = {0: 15, 1: 16, 2: 63, 3: 64, 4: 255, 5: 256, 6: 511, 7: 512, 8: 1}
    sequences = Sequences(spec, dtype, page_size, 4000)
    sequences.run(lengths)
    for _ in range(3):
        sequences.run(dict.fromkeys(lengths, 1))
    sequences.run(dict.fromkeys(lengths, 3))


@both
def test_a_long_context_keeps_its_precision(dtype):
    spec = replace(tiny_spec(num_layers=1, num_heads=8, num_kv_heads=1, head_dim=64), max_positions=1 << 15)
    sequences = Sequences(spec, dtype, 64, 9000)
    sequences.run({0: 200})
    grown = sequences.drawn(1, 1, 7, 8000)
    batch = sequences.paged.step({0: [0] * 8000})
    sequences.kv.write(0, torch.from_numpy(batch.slots), grown, grown)
    sequences.keys[0] = np.concatenate([sequences.keys[0], grown.double().numpy()])
    sequences.values[0] = np.concatenate([sequences.values[0], grown.double().numpy()])
    sequences.run({0: 1})
    sequences.run({0: 5})


@both
def test_attention_of_a_sequence_hangs_on_no_other(dtype):
    """Bit for bit: its keys are parted where it says, not where the batch says."""
    spec = tiny_spec(num_layers=1, num_heads=8, num_kv_heads=2, head_dim=32)

    def last(others):
        sequences = Sequences(spec, dtype, 16, 4000)
        sequences.run({0: 700})
        if others:
            sequences.run({each: 10 * each for each in others})
        got = sequences.run({0: 1, **dict.fromkeys(others, 1)})
        return got[sequences.paged.order.index(0)]

    assert torch.equal(last([]), last(range(1, 20)))


def dense(rows, columns, seed=0):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).bfloat16()
    return weight, NativeDense("o", weight.shape, whole(weight), "", HugePages())


@pytest.mark.parametrize(("rows", "columns"), [(64, 96), (37, 45), (130, 17), (1, 64)])
def test_products(rows, columns):
    weight, linear = dense(rows, columns)
    random = torch.Generator().manual_seed(rows)
    for tokens in (1, 2, 3, 4, 5, 6, 7, 13, 16, 31, 96, 97, 200, AT_A_TIME + 5):
        x = torch.randn(tokens, columns, generator=random).bfloat16()
        right = x.double() @ weight.double().T
        scale = right.abs().max()
        assert (linear.product(x) - right).abs().max() <= 3e-6 * scale, "sums are in float32 whatever the weights are"
        assert (linear(x) - right).abs().max() <= 6e-3 * scale
        assert linear(x).dtype == x.dtype
        assert (linear.logits(x) - right).abs().max() <= 3e-6 * scale
    ids = torch.randint(rows, (9,), generator=random, dtype=torch.int32)
    assert torch.equal(linear.rows(ids), weight[ids.long()])


def test_a_matrix_may_come_in_parts_of_any_number_of_rows_and_any_number_format():
    rows = 0, 64, 74, 75, 96, 130
    random = torch.Generator().manual_seed(0)
    kinds = torch.float32, torch.float16, torch.bfloat16, torch.float32, torch.float32
    parts = [
        (slice(first, last), torch.randn(last - first, 45, generator=random).to(kind))
        for first, last, kind in zip(rows, rows[1:], kinds, strict=False)
    ]
    linear = NativeDense("o", (130, 45), parts, "", HugePages())
    assert torch.equal(linear.rows(torch.arange(130)), torch.cat([part.bfloat16() for _, part in parts]))


def test_a_token_s_product_hangs_on_no_other_token():
    _, linear = dense(150, 208)
    x = torch.randn(AT_A_TIME + 9, 208, generator=torch.Generator().manual_seed(4)).bfloat16()
    together = linear.product(x)
    for number in (1, 2, 3, 4, 5, 7, 8, 12, 50, 97, 300):
        assert torch.equal(linear.product(x[:number]), together[:number]), f"{number} tokens"


@both
@pytest.mark.parametrize("width", [32, 45, 1024])
@pytest.mark.parametrize("tokens", [1, 200])
@pytest.mark.parametrize("apart", [True, False])
def test_norm_and_gate_around_projections_and_apart_from_them(dtype, width, tokens, apart):
    backend, random = NativeBackend(dtype, threads=2), torch.Generator().manual_seed(width)
    hidden = (torch.randn(tokens, width, generator=random) * 5).to(TORCH[dtype])
    norm = Norm(torch.randn(width, generator=random).to(TORCH[dtype]), 1e-5)
    normed = functional.rms_norm(hidden.double(), (width,), norm.weight.double(), norm.eps)
    allowed = {"float32": 1e-6, "bfloat16": 4e-3}[dtype]
    assert (backend._normed(hidden, norm) - normed).abs().max() <= allowed * normed.abs().max()

    weight = torch.randn(2 * 48, width, generator=random).to(TORCH[dtype])
    linear = DenseLinear("gate_up", weight, "") if apart else backend._native.linear("gate_up", weight, "")
    gate, up = (normed @ weight.double().T).chunk(2, -1)
    right = functional.silu(gate) * up
    found = backend.gate_up(hidden, norm, linear)
    assert (found - right).abs().max() <= {"float32": 1e-5, "bfloat16": 2e-2}[dtype] * right.abs().max()


def test_silu_of_the_extremes():
    backend = NativeBackend("float32", threads=1)
    gate = torch.tensor(
        [-1e30, -200.0, -100.0, -88.0, -20.0, -1.0, -0.0, 0.0, 1e-3, 1.0, 20.0, 88.0, 100.0, 200.0, 1e30, 3.0] * 3
    )
    both = torch.cat([gate, torch.full_like(gate, 2.0)])[None]
    out = torch.empty(1, len(gate))
    backend._silu_times(0, both.data_ptr(), 1, len(gate), out.data_ptr())
    assert torch.allclose(out[0], functional.silu(gate) * 2, rtol=1e-6, atol=1e-30)


def test_rows_of_a_split_model_are_left_to_be_summed(monkeypatch):
    """A rank of several has a part of the product: the residual may not be added to each part."""
    spec = tiny_spec()
    backend = NativeBackend("float32", threads=1)
    linear = backend.place(random_weights(spec)[WeightName("o", 0)], spec, None)
    x, residual = torch.randn(3, spec.q_width), torch.randn(3, spec.hidden)
    right = residual + 2 * linear(x)
    monkeypatch.setattr(NativeBackend, "split", property(lambda self: True))
    monkeypatch.setattr(NativeBackend, "summed", lambda self, partial: partial * 2)
    assert torch.allclose(backend.linear_add(x, linear, residual), right)


def test_a_tied_head_is_the_embedding():
    spec = tiny_spec()
    backend = NativeBackend("bfloat16", threads=1)
    table = random_weights(spec)[WeightName("embed")].parts[0]
    embedding = backend.place(Weight(WeightName("embed"), (table,)), spec, None)
    head = backend.place(Weight(WeightName("head"), (table,), tied=True), spec, None)
    assert head is embedding
    assert head.format == "bfloat16 in native kernels, the embedding it is tied to"


def test_weights_lie_in_aligned_pieces_of_huge_pages():
    memory = HugePages()
    first, second = memory.empty((3, 5), torch.bfloat16), memory.empty((7,), torch.float32)
    assert first.data_ptr() % HUGE == 0
    assert second.data_ptr() == first.data_ptr() + 64
    large = memory.empty((CHUNK + 1,), torch.uint8)
    assert large.data_ptr() % HUGE == 0
    large[-1] = 1


def test_many_short_regions_give_every_task_to_somebody():
    """Thousands of regions one after the other, from several threads at once: who finds the team busy works alone."""
    from concurrent.futures import ThreadPoolExecutor

    _, linear = dense(512, 64)

    def many(seed):
        x = torch.randn(2, 64, generator=torch.Generator().manual_seed(seed)).bfloat16()
        right = linear.product(x)
        return all(torch.equal(linear.product(x), right) for _ in range(700))

    with ThreadPoolExecutor(3) as threads:
        assert all(threads.map(many, range(3)))


def test_a_forked_child_works_alone():
    import os

    _, linear = dense(512, 64)
    x = torch.randn(1, 64).bfloat16()
    right = linear.product(x)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(linear.product(x).numpy(), right.numpy()) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("tokens", [1, 3, 70])
def test_layers_in_one_call_are_their_five_operations(tokens):
    """Where a head is whole panels, and where it is not."""
    for width in (32, 16):
        spec = tiny_spec(num_heads=8, num_kv_heads=2, head_dim=width)
        backend = NativeBackend("bfloat16", threads=2)
        placed = {name: backend.place(weight, spec, None) for name, weight in random_weights(spec).items()}
        layers = Decoder(spec, backend, placed).layers
        hidden = torch.randn(tokens, spec.hidden, generator=torch.Generator().manual_seed(tokens)).bfloat16()
        kv = backend.kv_cache(spec, 20, 16)
        step = backend.upload(PagedSequences(20, 16, seed=0).step({0: [0] * tokens}), spec, kv)
        right = ComputeBackend.layers(backend, hidden.clone(), layers, kv, step)
        assert torch.equal(backend.layers(hidden.clone(), layers, kv, step), right)


def test_the_largest_logit_is_the_first_of_equals_and_a_nan_before_all():
    backend = NativeBackend("bfloat16", threads=2)
    for width in (1, 15, 33, 8192, 20_000):
        rows = torch.randn(5, width, generator=torch.Generator().manual_seed(width)).round_(decimals=1)
        rows[1] = -torch.inf
        rows[2, width // 2 :] = 9.0
        rows[3, width - 1] = rows[4, width // 3] = torch.nan
        rows[4, width - 1] = torch.inf
        assert backend.argmax(rows).tolist() == rows.argmax(-1).tolist() == rows.numpy().argmax(-1).tolist()
