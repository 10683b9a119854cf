"""The paddle backend: the contract of every compute backend, and what is its own."""

import logging
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from core.compose import compose
from core.interfaces.model import Weight, WeightName
from core.testing.compute import ComputeBackendContract
from core.testing.fakes import RowInt8
from core.testing.inputs import random_weights, tiny_spec

pytestmark = pytest.mark.paddle


def made(dtype="float32"):
    from core.compute.paddle_backend.backend import PaddleBackend

    return PaddleBackend("cpu", dtype, threads=1)


class TestPaddleOnCpu(ComputeBackendContract):
    dtypes = ("float32",)

    def make(self, dtype):
        return made(dtype)


# --- weights ----------------------------------------------------------------------------------------------------------


def test_what_paddle_stores_in_out_is_held_and_multiplied_so():
    spec = tiny_spec()
    backend = made()
    name = WeightName("qkv", 0)
    parts = random_weights(spec)[name].parts
    stored = np.ascontiguousarray(np.concatenate(parts).T)  # [in, out], as a -Paddle checkpoint has it
    rows = np.cumsum([0, *(len(part) for part in parts)])
    views = tuple(stored.T[first:last] for first, last in pairwise(rows))
    linear = backend.place(Weight(name, views), spec, None)
    assert linear.format == "float32, [in, out]"
    assert np.array_equal(linear.weight.numpy(), stored)
    x = np.random.default_rng(0).standard_normal((3, spec.hidden)).astype(np.float32)
    assert np.allclose(linear(to_paddle(x)).numpy(), x @ stored, atol=1e-5)
    assert backend.place(Weight(name, parts), spec, None).format == "float32"


def test_packed_weights_are_unpacked_on_a_cpu():
    spec = tiny_spec()
    linear = made().place(random_weights(spec)[WeightName("o", 0)], spec, RowInt8(frozenset({"o"})))
    assert linear.format == f"{RowInt8().name} held as float32"


def to_paddle(array):
    import paddle

    return paddle.to_tensor(array)


@pytest.mark.parametrize("arch", [75, 80, 90])
@pytest.mark.parametrize(("bits", "group"), [(4, -1), (4, 64), (8, -1)])
def test_codes_are_rearranged_as_paddle_does_it(bits, group, arch):
    """Against its own quantizing of a matrix that loses nothing by it: whole numbers, the largest in each group."""
    from paddle.nn.quant import weight_quantize

    from core.compute.paddle_backend.quantized import rearranged

    most = 2 ** (bits - 1) - 1
    values = np.random.default_rng(bits).integers(-most, most + 1, (128, 192))
    values[:, ::64] = most
    expected, scale = weight_quantize(
        to_paddle(values.T.astype(np.float32)).cast("bfloat16"), f"weight_only_int{bits}", arch, group
    )
    assert np.all(scale.cast("float32").numpy() == 1)
    codes = (values + most + 1).astype(np.uint8)
    assert np.array_equal(rearranged(codes, bits, arch).numpy(), expected.numpy())
    lowest = np.zeros_like(codes)  # which Paddle itself never makes
    assert len(np.unique(rearranged(lowest, bits, arch).numpy())) == 1


def test_a_product_that_fails_its_trial_is_not_used(monkeypatch, caplog):
    import paddle

    from core.compute.paddle_backend import quantized
    from core.compute.paddle_backend.linear import Target

    monkeypatch.setattr(quantized, "capability", lambda: 80)
    target = Target(paddle.CPUPlace(), "bfloat16")
    with caplog.at_level(logging.WARNING, logger="dovetail.compute"):
        assert not quantized.works(8, -1, target)  # a CPU has none
        monkeypatch.setattr(quantized, "weight_only_linear", lambda x, **_: paddle.zeros([5, 128], "bfloat16"))
        assert not quantized.works(4, 64, target)
    unable, wrong = (record.message for record in caplog.records)
    assert unable.startswith("packed weights of 8 bits are held as bfloat16: Paddle cannot multiply by them: ")
    assert wrong == "packed weights of 4 bits are held as bfloat16: Paddle multiplies by them wrongly here"


# --- pages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beside", [True, False], ids=["by a thread", "at once"])
def test_pages_that_are_saved_come_back_elsewhere(beside):
    from core.compute.paddle_backend.host_pages import PagesOfCuda

    kv = made().kv_cache(tiny_spec(), 12, 4)
    kv._memory[:] = to_paddle(np.random.default_rng(0).standard_normal(kv._memory.shape).astype(np.float32))
    before = kv._memory.numpy()
    host = kv.host_pages(9) if beside else PagesOfCuda(kv._memory, 9)
    host.save(np.array([3, 1], np.int32), np.array([0, 8], np.int32)).wait()
    kv.keys[0][3] = 0.0
    copied = host.restore(np.array([8, 0], np.int32), np.array([6, 7], np.int32))
    copied.wait()
    assert copied.done()
    host.close()
    after = kv._memory.numpy()
    assert np.array_equal(after[:, :, [6, 7]], before[:, :, [1, 3]])
    assert np.array_equal(after[:, :, [0, 1, 2, 4, 5]], before[:, :, [0, 1, 2, 4, 5]])


# --- beside another framework -----------------------------------------------------------------------------------------

DECODES = """
import sys
import numpy as np
from core.interfaces.compute import StepBatch
from core.models.decoder import Decoder
from core.testing.inputs import PagedSequences, random_weights, tiny_spec
{make}
spec = tiny_spec()
decoder = Decoder.load(spec, random_weights(spec).values(), backend)
kv = backend.kv_cache(spec, 8, 16)
logits = decoder.forward(backend.upload(PagedSequences(8, 16).step({{0: [1, 2, 3]}}), spec, kv), kv)
assert backend.to_host(backend.argmax(logits)).shape == (1,)
print("{other}" in sys.modules)
"""
PADDLE = "from core.compute.paddle_backend.backend import PaddleBackend\nbackend = PaddleBackend('cpu', 'float32', 1)"
TORCH = "from core.compute.torch_backend.backend import TorchBackend\nbackend = TorchBackend('cpu', 'float32', 1)"


@pytest.mark.parametrize(("make", "other"), [(PADDLE, "torch"), (TORCH, "paddle")], ids=["paddle", "torch"])
def test_one_backend_never_imports_the_other_framework(make, other):
    run = [sys.executable, "-c", DECODES.format(make=make, other=other)]
    done = subprocess.run(run, check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout == "False\n"


def test_logits_are_lent_to_a_sampler_of_torch_without_a_copy():
    import torch

    from core.engine.lending import LentLogits
    from core.interfaces.sampler import Sampler
    from core.testing.inputs import sampling_rows

    class Marking(Sampler):
        def sample(self, logits, rows):
            assert isinstance(logits, torch.Tensor)
            logits[0, 0] = 7.0
            return logits.argmax(-1)

    logits = to_paddle(np.array([[1.0, 3.0], [5.0, 4.0], [0.0, 2.0]], np.float32))
    tokens = LentLogits(Marking(), "paddle", "torch").sample(logits, sampling_rows(3))
    assert float(logits[0, 0]) == 7.0  # its own memory was written to
    assert type(tokens) is type(logits)
    assert made().to_host(tokens).tolist() == [0, 0, 1]


def test_the_plan_tells_how_it_samples_and_in_which_format():
    plan = compose(["--backend", "paddle", "--model", "random:tiny", "--device", "cpu"], env={})
    assert plan.reasons["sampler"] == "it draws from arrays of torch: those of paddle are lent to it, without a copy"
    assert plan.settings["dtype"] == "float32"
    assert plan.reasons["dtype"] == "on a CPU the compute backend paddle does not compute in bfloat16"
