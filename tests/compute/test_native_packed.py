"""Native products with packed weights: their values in every layout and shape, each row for itself, and what is held."""

import ctypes
import itertools

import ml_dtypes
import numpy as np
import pytest
import torch
from torch.nn import functional

from core.compute.torch_backend.linear import Target
from core.compute.torch_backend.native import build, library, packed
from core.compute.torch_backend.native.backend import NativeBackend
from core.compute.torch_backend.native.linear import NativeDense, NativeTarget, whole
from core.compute.torch_backend.native.memory import HugePages
from core.interfaces.model import WeightName
from core.interfaces.quantizer import Packed
from core.testing.fakes import RowInt8
from core.testing.inputs import random_weights, tiny_spec

CPU = torch.device("cpu")
BF16 = NativeTarget(CPU, torch.bfloat16)
SHAPES = [(2560, 1024), (33, 80), (48, 72), (1, 8), (101, 1000), (32, 32)]
FORMATS = ["int8", "int4 a row", "int4 by 32", "int4 by 64", "int4 by 128"]


def made(format, rows, columns, activations, seed=0):
    """The packed matrix and its values, float64."""
    random = np.random.default_rng(seed)
    if format == "int8":
        codes = random.integers(-127, 128, (rows, columns), dtype=np.int8)
        scale = random.random(rows, dtype=np.float32) + np.float32(0.1)
        arrays = {"codes": codes, "scale": scale}
        return Packed((rows, columns), arrays, {"activations": activations}), codes * scale[:, None].astype(np.float64)
    group = columns if format == "int4 a row" else int(format.split()[-1])
    stored = -(-columns // group) * group
    codes = random.integers(0, 16, (rows, stored), dtype=np.uint8)
    scale = random.standard_normal((rows, stored // group), dtype=np.float32).astype(ml_dtypes.bfloat16)
    arrays = {"codes": codes[:, ::2] | codes[:, 1::2] << 4, "scale": scale}
    values = (codes.astype(np.float64) - 8) * np.repeat(scale.astype(np.float64), group, 1)
    return Packed((rows, columns), arrays, {"group_size": group, "activations": activations}), values[:, :columns]


def inputs(rows, columns, dtype=torch.bfloat16, seed=1):
    """Rows of very different size, each with an outlier."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator) * torch.logspace(-2, 3, rows)[:, None]
    x[:, 3] *= 20
    return x.to(dtype)


def rounded(x, digits):
    """What the format makes of activations, float64."""
    rows, columns = x.shape
    blocks = np.pad(x.float().numpy(), ((0, 0), (0, -columns % packed.BLOCK))).reshape(rows, -1, packed.BLOCK)
    most = np.abs(blocks).max(2, keepdims=True)
    steps = np.divide(np.float32(127) * blocks, most, out=np.zeros_like(blocks), where=most > 0).astype(np.float64)
    whole = np.rint(steps)
    if digits == 2:
        whole += np.minimum(np.rint((steps - whole) * 256), 127) / 256
    return (whole * (most.astype(np.float64) / 127)).reshape(rows, -1)[:, :columns]


def placed(matrix, target=BF16):
    linear = packed.placed("o", matrix, target)
    assert isinstance(linear, packed.PackedLinear)
    return linear


def agrees(linear, values, x, digits):
    """To the rounding of sums in float32, but for activations that lie between two steps and may be either."""
    sizes = x.double().abs().numpy() @ np.abs(values).T
    out = linear.logits(x).double().numpy()
    exact = x.double().numpy() @ values.T
    format = rounded(x, digits) @ values.T
    if digits == 2:
        assert np.abs(out - exact).max(initial=0, where=sizes > 0) <= (sizes * 1e-3).max()
        assert (np.abs(out - exact) <= 1e-3 * sizes + 1e-30).all()
    assert np.median(np.abs(out - format) / sizes) < 1e-6
    assert (np.abs(out - format) <= 2e-2 / digits**8 * sizes + 1e-30).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("activations", "digits"), [("int8", 1), ("int16", 2)])
def test_values(format, shape, activations, digits):
    matrix, values = made(format, *shape, activations)
    linear = placed(matrix)
    assert (linear.out_features, linear.in_features) == shape
    for dtype in (torch.bfloat16, torch.float32):
        x = inputs(9, shape[1], dtype)
        agrees(linear, values, x, digits)
        assert torch.equal(linear(x), linear.logits(x).to(dtype))
        assert linear(x[:0]).shape == (0, shape[0])


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("activations", ["int8", "int16"])
def test_a_row_is_the_same_to_the_last_bit_whoever_is_beside_it(format, activations):
    """At every number of tokens, over the number that are rounded at a time too, and in the calls that compute around it."""
    matrix, _ = made(format, 112, 320, activations)
    linear = placed(matrix)
    x = inputs(400, 320)
    alone = torch.cat([linear.logits(row[None]) for row in x])
    for rows in (*range(1, 71), 400):
        assert torch.equal(linear.logits(x[:rows]), alone[:rows])
    assert torch.equal(linear.product(x[:70]), alone[:70])
    loud = x[:8].clone()
    loud[1:] *= 1000
    assert torch.equal(linear.logits(loud)[0], alone[0])


def test_several_threads_compute_what_one_does():
    matrix, _ = made("int4 by 64", 2560, 1024, "int8")
    linear, x = placed(matrix), inputs(40, 1024)
    library.start(1)
    alone = linear(x)
    library.start(3)
    assert torch.equal(linear(x), alone)


@pytest.mark.parametrize("activations", ["int8", "int16"])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_there_are(activations, sign):
    codes = np.full((32, 4096), 127 * sign, np.int8)
    matrix = Packed((32, 4096), {"codes": codes, "scale": np.ones(32, np.float32)}, {"activations": activations})
    x = torch.full((7, 4096), 2.0)
    x[1::2] *= -1
    right = torch.tensor([2.0, -2.0] * 4)[:7, None] * 127 * sign * 4096
    assert torch.allclose(placed(matrix).logits(x), right.expand(7, 32), rtol=1e-6)


@pytest.mark.parametrize("activations", ["int8", "int16"])
@pytest.mark.parametrize("format", ["int8", "int4 by 32"])
def test_tokens_of_nothing_next_to_nothing_and_no_number(format, activations):
    matrix, _ = made(format, 40, 80, activations)
    linear = placed(matrix)
    x = inputs(6, 80, torch.float32)
    x[0], x[1] = 0, 1e-40
    x[2, 5], x[3, 70] = float("nan"), float("inf")
    out = linear(x)
    assert (out[:2] == 0).all()
    assert not out[2:4].isfinite().any()
    assert out[4:].isfinite().all()
    assert torch.equal(out[4:], linear(x[4:]))


def test_what_is_held_is_what_is_said():
    for format, activations in itertools.product(FORMATS, ("int8", "int16")):
        matrix, _ = made(format, 2560, 1024, activations)
        linear = placed(matrix)
        assert linear.nbytes == linear._panels.nbytes
        assert matrix.nbytes <= linear.nbytes < matrix.nbytes * 1.005


@pytest.mark.parametrize(
    ("format", "activations", "said"),
    [
        ("int8", "int8", "int8 a row, 8-bit activations in blocks of 32"),
        ("int4 a row", "int16", "int4 a row, 16-bit activations in blocks of 32"),
        ("int4 by 64", "int8", "int4 in groups of 64, 8-bit activations in blocks of 32"),
    ],
)
def test_the_format_says_how_it_multiplies(format, activations, said):
    assert placed(made(format, 64, 128, activations)[0]).format == said


def test_groups_that_blocks_do_not_divide_are_left_to_the_reference():
    matrix, _ = made("int4 by 48", 64, 192, "int8")
    assert packed.placed("o", matrix, BF16) is None
    assert BF16.kernel("int4_group")("o", matrix, BF16) is None


def test_without_instructions_for_it_torch_multiplies(monkeypatch):
    monkeypatch.setattr(packed, "instructions", lambda: "")
    matrix, _ = made("int8", 96, 80, "int8")
    assert packed.placed("o", matrix, BF16) is None
    assert BF16.kernel("int8_row")("o", matrix, BF16).format == "int8 a row, 16-bit activations by token"
    assert Target(CPU, torch.bfloat16).kernel("int8_row") is not None


def test_kernels_that_compute_wrongly_are_not_used(monkeypatch):
    """Wrong by a thousandth is wrong."""
    matrix, _ = made("int8", 96, 80, "int16")
    right = packed.PackedLinear.logits
    packed.works.cache_clear()
    monkeypatch.setattr(packed.PackedLinear, "logits", lambda self, x: right(self, x) * 1.001)
    assert packed.placed("o", matrix, BF16) is None
    packed.works.cache_clear()
    monkeypatch.undo()
    assert isinstance(packed.placed("o", matrix, BF16), packed.PackedLinear)


def test_a_matrix_mapped_from_a_file_is_not_written_to():
    matrix, _ = made("int8", 96, 80, "int8")
    for array in matrix.arrays.values():
        array.setflags(write=False)
    x = inputs(3, 80)
    assert torch.equal(placed(matrix)(x), placed(made("int8", 96, 80, "int8")[0])(x))


def test_other_instructions_compute_the_same(monkeypatch, tmp_path):
    """AVX2, where the library is built for more: the order of every sum is the same, and so is its last bit."""
    x = inputs(7, 320)
    matrices = [made(format, 80, 320, kind)[0] for format, kind in itertools.product(FORMATS, ("int8", "int16"))]
    here = [placed(matrix).logits(x) for matrix in matrices]
    flags = tuple("-O1" if flag == "-O3" else flag for flag in build.FLAGS)
    build.compile_into(tmp_path / "avx2.so", build.find_compiler(), (*flags, "-mavx2", "-mfma"))
    other = ctypes.CDLL(str(tmp_path / "avx2.so"))
    monkeypatch.setattr(library, "_loaded", lambda: other)
    assert packed.instructions() == "avx2"
    for matrix, right in zip(matrices, here, strict=True):
        assert torch.equal(placed(matrix).logits(x), right)
    weight = inputs(101, 45, seed=2)
    linear = NativeDense("o", (101, 45), whole(weight), "", HugePages())
    for tokens in (1, 2, 3, 5, 13):
        x = inputs(tokens, 45)
        terms = x.double() @ weight.double().T, x.double().abs() @ weight.double().abs().T
        assert ((linear.product(x) - terms[0]).abs() <= 3e-6 * terms[1]).all()


class ByRow(RowInt8):
    layout = "int8_row"


@pytest.mark.parametrize("tokens", [1, 5, 65])
def test_what_the_backend_computes_around_the_product(tokens):
    spec, quantizer = tiny_spec(), ByRow()
    backend = NativeBackend("float32", threads=1)
    weights = random_weights(spec)
    norm = backend.place(weights[WeightName("norm", 0, "post")], spec, None)
    weight = weights[WeightName("gate_up", 0)]
    linear = backend.place(weight, spec, quantizer)
    assert linear.format == "int8 a row, 16-bit activations in blocks of 32"
    hidden = inputs(tokens, spec.hidden, torch.float32)
    values = torch.from_numpy(quantizer.unpack(quantizer.pack(np.concatenate(weight.parts)))).double()
    gate, up = (norm(hidden).double() @ values.T).chunk(2, -1)
    right = functional.silu(gate) * up
    assert (backend.gate_up(hidden, norm, linear) - right).abs().max() < 1e-3 * right.abs().max()
