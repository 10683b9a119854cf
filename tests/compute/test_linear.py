"""Placed weights: packing, tying, quantizing by the reference path, and what is said about each."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch

from core.compute.torch_backend import linear
from core.compute.torch_backend.backend import TorchBackend
from core.compute.torch_backend.linear import Target, TorchLinear
from core.interfaces import quantizer as interface
from core.interfaces.model import LINEAR_ROLES, Weight, WeightName
from core.testing.fakes import RowInt8
from core.testing.inputs import random_weights, tiny_spec

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check(placed, matrix, dtype):
    x = torch.randn(5, matrix.shape[1], generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = x.double() @ torch.from_numpy(matrix.astype(np.float64)).to(dtype).double().T
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    for rows in (1, 5):
        assert torch.allclose(placed(x[:rows]).double(), expected[:rows], atol=tolerance * expected.abs().max())


@pytest.fixture(params=["packed", "plain"])
def packing(request, monkeypatch):
    """With oneDNN's packing where this CPU has it, and as if it had not."""
    if request.param == "plain":
        monkeypatch.setattr(linear, "onednn_packs", lambda dtype: False)
    return request.param


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("role", LINEAR_ROLES)
@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("transposed", [False, True])
def test_every_role_in_every_dtype(packing, dtype, role, stored, transposed):
    spec = tiny_spec(hidden=40, intermediate=72, tied_head=False)
    weight = random_weights(spec)[WeightName(role, None if role == "head" else 0)]
    kind = ml_dtypes.bfloat16 if stored == "bfloat16" else np.dtype(stored)
    parts = tuple(part.astype(kind) for part in weight.parts)
    if transposed:
        parts = tuple(np.ascontiguousarray(part.T).T for part in parts)
    for part in parts:
        part.flags.writeable = False  # as a mapped file is
    placed = linear.place(Weight(weight.name, parts), spec, None, Target(CPU, dtype))
    assert (placed.role, placed.out_features, placed.in_features) == (role, *spec.shape(role))
    assert placed.nbytes >= np.prod(spec.shape(role)) * dtype.itemsize
    assert ("packed for oneDNN" in placed.format) == (packing == "packed" and linear.onednn_packs(dtype))
    check(placed, np.concatenate(parts).astype(np.float32), dtype)


def test_bfloat16_is_packed_where_the_cpu_can_and_float32_stays_exact():
    assert not linear.onednn_packs(torch.float32)
    assert linear.onednn_packs(torch.bfloat16) == torch.ops.mkldnn._is_mkldnn_bf16_supported()


def test_packing_that_is_missing_or_wrong_is_not_used(monkeypatch):
    linear.onednn_packs.cache_clear()
    monkeypatch.setattr(linear.PackedLinear, "__call__", lambda self, x: x @ torch.ones(80, 48, dtype=x.dtype))
    assert not linear.onednn_packs(torch.bfloat16)
    linear.onednn_packs.cache_clear()
    monkeypatch.setattr(linear.PackedLinear, "__init__", lambda *args: torch.ops.mkldnn.no_such_operation())
    assert not linear.onednn_packs(torch.bfloat16)
    linear.onednn_packs.cache_clear()


def test_only_what_is_tied_takes_the_embedding():
    spec = tiny_spec(num_heads=6)  # a projection of the embedding's shape
    weight = random_weights(spec)[WeightName("o", 0)]
    embedding = torch.zeros(spec.shape("embed")).view(spec.shape("o"))
    check(linear.place(weight, spec, None, Target(CPU, torch.float32), embedding), weight.parts[0], torch.float32)


def test_eight_bit_floats_are_read():
    spec = tiny_spec()
    name = WeightName("o", 0)
    stored = random_weights(spec)[name].parts[0].astype(ml_dtypes.float8_e4m3fn)
    check(
        linear.place(Weight(name, (stored,)), spec, None, Target(CPU, torch.float32)), stored.astype(np.float32), torch.float32
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_tied_head_is_the_embedding(packing, dtype):
    spec = tiny_spec()
    backend = TorchBackend("cpu", dtype, threads=1)
    weights = random_weights(spec)
    table = backend.place(weights[WeightName("embed")], spec, None)
    head = backend.place(weights[WeightName("head")], spec, None)
    check(head, weights[WeightName("embed")].parts[0], table.dtype)
    if packing == "packed" and linear.onednn_packs(table.dtype):
        assert head.format == f"{dtype} packed for oneDNN, beside the embedding it is tied to"
        assert head.nbytes >= table.nbytes
    else:
        assert head.format == f"{dtype}, the embedding it is tied to"
        assert head.nbytes == 0, "its memory is the embedding's"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_logits_that_would_tie_when_rounded_keep_their_order(packing, dtype):
    """Large, nearly equal logits: a 16-bit float holds them no better than in steps of 1/8 (bfloat16) or 1/64 (float16)."""
    spec = tiny_spec(vocab=64, hidden=32)
    draw = np.random.default_rng(0)
    table = draw.normal(0, 0.05, (64, 32)).astype(np.float32)
    table[3:12] = 1 + np.arange(9)[:, None] * np.eye(9, 32, dtype=np.float32) / 128  # apart by less than a step in all
    backend = TorchBackend("cpu", dtype, threads=1)
    placed = backend.place(Weight(WeightName("embed"), (table,)), spec, None)
    head = backend.place(Weight(WeightName("head"), (table,), tied=True), spec, None)
    x = torch.ones(2, 32, dtype=placed.dtype)
    exact = x.double() @ placed.double().T
    assert (head(x)[0] == head(x)[0].max()).sum() > 1, "nothing ties: the test shows nothing"
    logits = head.logits(x)
    assert logits.dtype == torch.float32
    near = exact > 16
    assert torch.allclose(logits[near].double(), exact[near], atol=1e-5)
    assert torch.equal(logits.argmax(1), exact.argmax(1))
    assert (logits[~near] < logits[near].min()).all()


def test_a_row_in_which_all_is_alike_is_left_as_it_is(packing, monkeypatch):
    monkeypatch.setattr(linear, "MOST_SHARPENED", 8)
    x, weight = torch.ones(1, 4, dtype=torch.bfloat16), torch.ones(9, 4, dtype=torch.bfloat16)
    rounded = torch.full((1, 9), 3.0, dtype=torch.bfloat16)
    assert torch.equal(linear.sharpened(rounded, x, weight), rounded.float())
    assert torch.equal(linear.sharpened(rounded[:, :8], x, weight[:8]), torch.full((1, 8), 4.0))


def test_a_head_of_its_own_is_not_the_embedding():
    spec = tiny_spec(tied_head=False)
    backend = TorchBackend("cpu", "float32", threads=1)
    weights = random_weights(spec)
    backend.place(weights[WeightName("embed")], spec, None)
    head = backend.place(weights[WeightName("head")], spec, None)
    check(head, weights[WeightName("head")].parts[0], torch.float32)


class CountedInt8(RowInt8):
    """Remembers how many values it was given at a time."""

    def __init__(self, *roles):
        super().__init__(frozenset(roles))
        self.given = []

    def pack(self, weight):
        assert weight.dtype == np.float32
        assert weight.flags.c_contiguous
        self.given.append(weight.size)
        return super().pack(weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("role", LINEAR_ROLES)
def test_a_layout_without_a_kernel_is_held_unpacked_and_says_so(packing, monkeypatch, dtype, role):
    spec = tiny_spec()
    weight = random_weights(spec)[WeightName(role, None if role == "head" else 0)]
    quantizer = CountedInt8(role)
    monkeypatch.setattr(interface, "CHUNK_BYTES", 4 * 5 * spec.shape(role)[1])
    embedding = torch.zeros(spec.shape("embed"), dtype=dtype)  # a quantized head is packed from its own parts
    placed = linear.place(weight, spec, quantizer, Target(CPU, dtype), embedding)
    assert max(quantizer.given) <= 5 * spec.shape(role)[1]
    assert sum(quantizer.given) == np.prod(spec.shape(role))
    assert placed.format.startswith(f"fake_int8 held as {str(dtype).removeprefix('torch.')}")
    assert placed.nbytes >= np.prod(spec.shape(role)) * dtype.itemsize
    check(placed, quantizer.unpack(quantizer.pack(np.concatenate(weight.parts))), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_came_packed_is_unpacked_a_few_rows_at_a_time(monkeypatch, dtype):
    spec = tiny_spec()
    name = WeightName("gate_up", 0)
    weight = random_weights(spec)[name]
    plain = linear.place(weight, spec, RowInt8(), Target(CPU, dtype))
    given = []

    class Unpacking(RowInt8):
        def pack(self, weight):
            raise AssertionError("it is packed")

        def unpack(self, packed):
            given.append(packed.shape)
            return super().unpack(packed)

    monkeypatch.setattr(interface, "CHUNK_BYTES", 4 * 5 * spec.hidden)
    packed = RowInt8().pack(np.concatenate(weight.parts))
    placed = linear.place(Weight(name, (), packed=packed), spec, Unpacking(), Target(CPU, dtype))
    assert given == [(5, spec.hidden)] * 25 + [(3, spec.hidden)]
    assert placed.format == plain.format
    x = torch.randn(5, spec.hidden, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert torch.equal(placed(x), plain(x))


def test_a_role_the_quantizer_leaves_alone_is_not_touched():
    spec = tiny_spec()
    weight = random_weights(spec)[WeightName("down", 0)]
    quantizer = CountedInt8("o")
    placed = linear.place(weight, spec, quantizer, Target(CPU, torch.float32))
    assert not quantizer.given
    check(placed, weight.parts[0], torch.float32)


class Int8Linear(TorchLinear):
    """What a kernel for a layout looks like."""

    def __init__(self, role, packed, target):
        super().__init__(role, packed.shape, packed.nbytes, "int8, a row at a time")
        self.codes, self.scale = (torch.from_numpy(packed.arrays[key]) for key in ("codes", "scale"))

    def __call__(self, x):
        return torch.nn.functional.linear(x, self.codes.to(x.dtype)) * self.scale


def test_a_kernel_for_the_layout_is_used(monkeypatch):
    monkeypatch.setitem(linear.KERNELS, "fake_int8_row", Int8Linear)
    spec = tiny_spec()
    weight = random_weights(spec)[WeightName("qkv", 0)]
    quantizer = RowInt8()
    placed = linear.place(weight, spec, quantizer, Target(CPU, torch.float32))
    packed = quantizer.pack(np.concatenate(weight.parts))
    assert placed.format == "int8, a row at a time"
    assert placed.nbytes == packed.nbytes < np.prod(spec.shape("qkv")) * 2
    check(placed, quantizer.unpack(packed), torch.float32)


def test_a_kernel_that_this_device_lacks_leaves_the_reference(monkeypatch):
    monkeypatch.setitem(linear.KERNELS, "fake_int8_row", lambda role, packed, target: None)
    spec = tiny_spec()
    placed = linear.place(random_weights(spec)[WeightName("o", 0)], spec, RowInt8(), Target(CPU, torch.float32))
    assert placed.format.startswith("fake_int8 held as float32")


def test_norms_keep_their_epsilon():
    """Two models on one backend, with their own."""
    backend = TorchBackend("cpu", "float32", threads=1)
    weight = Weight(WeightName("norm", None, "final"), (np.ones(32, np.float32),))
    small, large = (backend.place(weight, replace(tiny_spec(), norm_eps=eps), None) for eps in (1e-6, 1.0))
    x = torch.full((1, 32), 2.0)
    assert torch.allclose(small(x), torch.ones(1, 32))
    assert torch.allclose(large(x), torch.full((1, 32), 2 / 5**0.5))


def test_a_server_of_steps_of_every_size_makes_few_kernels():
    sizes = [len(linear.in_few_sizes(torch.zeros(number, 1))) for number in range(1, 4097)]
    assert len(set(sizes)) < 60
    assert all(number <= size <= 1.5 * number for number, size in enumerate(sizes, 1))
    rows = torch.randn(100, 7)
    assert torch.equal(linear.in_few_sizes(rows)[:100], rows)
    assert not linear.in_few_sizes(rows)[100:].any()


@pytest.mark.parametrize("number", [17, 100, 300])
def test_rows_that_are_filled_up_change_nothing(packing, number):
    weight = torch.randn(48, 80, generator=torch.Generator().manual_seed(0)).bfloat16()
    placed = Target(CPU, torch.bfloat16).linear("o", weight, "bfloat16")
    x = torch.randn(number, 80, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert placed(x).shape == (number, 48)
    assert torch.allclose(placed(x).double(), x.double() @ weight.double().T, rtol=1e-2, atol=0.2)
