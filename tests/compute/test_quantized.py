"""Kernels for packed layouts: the values they multiply by, what each row's neighbours do to it, and what they hold."""

import ml_dtypes
import numpy as np
import pytest
import torch

from core.compute.torch_backend import linear, quantized
from core.compute.torch_backend.backend import TorchBackend
from core.compute.torch_backend.linear import Target
from core.interfaces.model import WeightName
from core.interfaces.quantizer import Packed
from core.testing.fakes import RowInt8
from core.testing.inputs import random_weights, tiny_spec

CPU = torch.device("cpu")
BF16 = Target(CPU, torch.bfloat16)
SHAPES = [(2560, 1024), (1024, 3072), (96, 80), (48, 72)]


def int8(rows, columns, activations, seed=0):
    random = np.random.default_rng(seed)
    codes = random.integers(-127, 128, (rows, columns), dtype=np.int8)
    scale = random.random(rows, dtype=np.float32) + np.float32(0.1)
    packed = Packed((rows, columns), {"codes": codes, "scale": scale}, {"activations": activations})
    return packed, codes * scale[:, None]


def int4(rows, columns, group, seed=0, missing=0):
    random = np.random.default_rng(seed)
    codes = random.integers(0, 16, (rows, columns), dtype=np.uint8)
    scale = random.standard_normal((rows, columns // group), dtype=np.float32).astype(ml_dtypes.bfloat16)
    arrays = {"codes": codes[:, ::2] | codes[:, 1::2] << 4, "scale": scale}
    values = (codes.astype(np.float32) - 8) * np.repeat(scale.astype(np.float32), group, 1)
    kept = columns - missing
    return Packed((rows, kept), arrays, {"group_size": group}), values[:, :kept]


def activations(rows, columns, dtype=torch.bfloat16, seed=1):
    """Rows of very different size, each with an outlier."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator) * torch.logspace(-2, 3, rows)[:, None]
    x[:, 3] *= 20
    return x.to(dtype)


def error(out, x, values):
    right = x.double() @ torch.from_numpy(values).double().T
    return float(((out.double() - right).norm(dim=1) / right.norm(dim=1)).max())


def test_the_kernels_work_here():
    """On any CPU that this project is tested on; where they do not, the reference path takes over."""
    assert quantized.int8_works(torch.bfloat16)
    assert quantized.int8_works(torch.float32)
    assert quantized.int4_works()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_sixteen_bit_activations_cost_nothing_that_can_be_seen(shape, dtype):
    packed, values = int8(*shape, "int16")
    packed.arrays["scale"] /= 1 << 14  # so that float16 holds what comes of it
    x = activations(9, shape[1], dtype)
    placed = quantized.int8_row("o", packed, Target(CPU, dtype))
    out, logits = placed(x), placed.logits(x)
    assert (out.dtype, logits.dtype) == (dtype, torch.float32)
    values /= 1 << 14
    assert error(out, x, values) < {torch.bfloat16: 4e-3, torch.float16: 1e-3, torch.float32: 4e-4}[dtype]
    assert error(logits, x, values) < 4e-4


def test_eight_bit_activations_are_sixteen_here():
    packed, values = int8(96, 80, "int8")
    x = activations(9, 80)
    placed = quantized.int8_row("o", packed, BF16)
    assert placed.format == "int8 a row, 16-bit activations by token"
    assert error(placed.logits(x), x, values) < 4e-4


@pytest.mark.parametrize("group", [32, 64, 128, 256, 576])
def test_four_bits_in_groups(group):
    columns = 1152 if group == 576 else 1024
    packed, values = int4(96, columns, group)
    x = activations(9, columns)
    placed = quantized.int4_group("o", packed, BF16)
    assert placed.format == f"int4 in groups of {group}"
    assert error(placed(x), x, values) < 5e-3


def test_four_bits_with_rows_filled_up():
    packed, values = int4(64, 640, 128, missing=64)
    x = activations(5, 576)
    placed = quantized.int4_group("o", packed, BF16)
    assert placed.in_features == 576
    assert error(placed(x), x, values) < 5e-3


@pytest.mark.parametrize("kind", ["int16", "int4"])
def test_a_row_is_the_same_whoever_is_beside_it(kind):
    packed, _ = int4(2560, 1024, 128) if kind == "int4" else int8(2560, 1024, kind)
    placed = quantized.CPU_KERNELS["int4_group" if kind == "int4" else "int8_row"]("qkv", packed, BF16)
    x = activations(65, 1024)
    alone = torch.cat([placed(row[None]) for row in x])
    for rows in (2, 8, 16, 65):
        together = placed(x[:rows])
        steps = (together - alone[:rows]).abs() / alone[:rows].abs().clamp(min=1e-30)
        assert float(steps.max()) <= 2**-7, "at most a rounding of the last bit"
    loud = x[:8].clone()
    loud[1:] *= 1000
    assert torch.equal(placed(loud)[0], placed(x[:8])[0]), "a neighbour's size reaches this row"


def test_a_token_of_zeros_and_one_that_is_no_number():
    packed, _ = int8(96, 80, "int16")
    placed = quantized.int8_row("o", packed, BF16)
    x = activations(3, 80)
    x[0] = 0
    x[1, 5] = float("nan")
    out = placed(x)
    assert (out[0] == 0).all()
    assert out[1].isnan().all()
    assert torch.equal(out[2], placed(x[2:])[0])


def test_what_is_held_is_what_is_said():
    for packed in (int8(2560, 1024, "int16")[0], int4(2560, 1024, 128)[0]):
        layout = "int8_row" if "activations" in packed.constants else "int4_group"
        placed = quantized.CPU_KERNELS[layout]("qkv", packed, BF16)
        assert packed.nbytes <= placed.nbytes < packed.nbytes * 1.04


@pytest.mark.parametrize(
    ("rows", "group", "dtype"), [(40, 64, torch.bfloat16), (64, 48, torch.bfloat16), (64, 64, torch.float32)]
)
def test_what_the_four_bit_kernel_lacks_is_left_to_the_reference(rows, group, dtype):
    packed, _ = int4(rows, 192, group)
    assert quantized.int4_group("o", packed, Target(CPU, dtype)) is None


@pytest.fixture
def forgotten():
    """What was tried out is tried out again, before and after."""
    for works in (quantized.int8_works, quantized.int4_works):
        works.cache_clear()
    yield
    for works in (quantized.int8_works, quantized.int4_works):
        works.cache_clear()


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("kernel", [quantized.Int8Linear, quantized.Int4Linear])
def test_a_kernel_that_is_wrong_or_missing_is_not_used(monkeypatch, kernel):
    packed = int4(64, 128, 64)[0] if kernel is quantized.Int4Linear else int8(64, 128, "int16")[0]
    layout = "int4_group" if kernel is quantized.Int4Linear else "int8_row"
    monkeypatch.setattr(kernel, "__call__", lambda self, x: torch.zeros(len(x), self.out_features))
    assert quantized.CPU_KERNELS[layout]("o", packed, BF16) is None
    quantized.int8_works.cache_clear()
    quantized.int4_works.cache_clear()
    monkeypatch.setattr(kernel, "__init__", lambda *args: torch.ops.onednn.no_such_operation())
    assert quantized.CPU_KERNELS[layout]("o", packed, BF16) is None


class Mixed(RowInt8):
    """Its head is packed otherwise."""

    roles = frozenset({"o", "head"})

    def __init__(self):
        super().__init__(self.roles)
        self.asked = []

    def of_role(self, role):
        self.asked.append(role)
        return Named() if role == "head" else self


class Named(RowInt8):
    name = "other_int8"


def test_a_format_that_mixes_is_asked_for_each_role():
    spec = tiny_spec()
    backend = TorchBackend("cpu", "float32", threads=1)
    weights, quantizer = random_weights(spec), Mixed()
    assert backend.place(weights[WeightName("head")], spec, quantizer).format.startswith("other_int8 held as float32")
    assert backend.place(weights[WeightName("o", 0)], spec, quantizer).format.startswith("fake_int8 held as float32")
    assert quantizer.asked == ["head", "o"]


def test_the_backend_knows_these_layouts():
    assert linear.KERNELS.keys() >= {"int8_row", "int4_group"}
