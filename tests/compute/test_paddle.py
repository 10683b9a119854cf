"""The paddle backend: the contract of every compute backend, and what is its own."""

import logging
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from core.compose import compose
from core.compose.composition import attempt
from core.compose.first_pass import first_pass
from core.compute.paddle_backend import framework, plugin
from core.interfaces.model import Weight, WeightName
from core.interfaces.quantizer import ByRole
from core.testing.compute import ComputeBackendContract
from core.testing.fakes import RowInt8
from core.testing.inputs import PagedSequences, random_weights, tiny_spec
from tests.must_show.test_documented_rules import CPU, HOPPERS, INSTALLED

pytestmark = pytest.mark.paddle


def made(dtype="float32"):
    from core.compute.paddle_backend.backend import PaddleBackend

    return PaddleBackend("cpu", dtype, threads=1)


class TestPaddleOnCpu(ComputeBackendContract):
    dtypes = ("float32",)

    def make(self, dtype):
        return made(dtype)


# --- weights ----------------------------------------------------------------------------------------------------------


def test_a_head_that_another_packs_is_multiplied_by_its_values():
    weight = random_weights(tiny_spec())[WeightName("head")]
    head = made().place(weight, tiny_spec(), ByRole(None, RowInt8()))
    values = RowInt8().unpack(RowInt8().pack(weight.parts[0]))
    x = np.random.default_rng(0).standard_normal((3, values.shape[1])).astype(np.float32)
    assert np.allclose(head(to_paddle(x)).numpy(), x @ values.T, atol=1e-5)
    assert head.format == "fake_int8 held as float32"


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


def test_what_a_page_holds_behind_a_context_is_not_looked_at():
    backend, spec = made(), tiny_spec(num_layers=1)
    kv = backend.kv_cache(spec, 12, 4)
    kv._memory[:] = float("nan")
    paged = PagedSequences(12, 4)
    q = np.random.default_rng(0).standard_normal((8, spec.q_width)).astype(np.float32)
    for work in ({0: [1] * 6, 1: [1] * 2}, {0: [1], 1: [1]}):
        step = backend.upload(paged.step(work), spec, kv)
        shape = [len(step.token_ids), spec.num_kv_heads, spec.head_dim]
        kv.write(0, step.slots, to_paddle(np.ones(shape, np.float32)), to_paddle(np.ones(shape, np.float32)))
        assert np.allclose(backend.to_host(backend.attention(to_paddle(q[: shape[0]]), kv, 0, step)), 1.0)


# --- what is refused, and what is told --------------------------------------------------------------------------------


def composed(probe, *flags):
    return attempt(first_pass(["--model", "random:ernie-4.5-0.3b", "--backend", "paddle", *flags], {}, None), INSTALLED, probe)


REFUSED = {
    "paddle-unpacks-a-head-on-a-cpu": (CPU, ("--head-quantization", "wint8"), "--head-quantization none"),
    "paddle-rounds-no-activations": (CPU, ("--quantization", "block_wise_fp8"), "--quantization none"),
    "number-format-the-backend-lacks": (CPU, ("--dtype", "bfloat16"), "--dtype float32"),
    "cuda-graphs-need-cuda": (CPU, ("--use-cudagraph",), "run steps eagerly"),
    "graph-of-another-framework": (HOPPERS, ("--use-cudagraph",), "--graph eager"),
    "backend-that-does-not-split": (HOPPERS, ("--tensor-parallel-size", "2"), "--parallelism none"),
    "no-cuda-device": (CPU, ("--device", "cuda"), "--device cpu"),
    "paddle-made-for-cpus": (HOPPERS, (), "--device cpu"),
}


@pytest.mark.parametrize("rule", REFUSED)
def test_what_it_cannot_do_is_refused_with_a_way_out(rule):
    probe, flags, way_out = REFUSED[rule]
    composition = composed(probe, *flags)
    assert composition.plan is None
    [violation] = [each for each in composition.violations if each.id == rule]
    assert violation.remedies[0].text.startswith(way_out)


def test_a_warning_says_that_no_card_has_been_seen_where_one_is_chosen(monkeypatch):
    monkeypatch.setattr(plugin, "_has", lambda package: package == "paddlepaddle-gpu")
    on_card, on_cpu = composed(HOPPERS), composed(HOPPERS, "--device", "cpu")
    assert on_card.plan is not None
    assert [each.id for each in on_card.violations] == ["paddle-untried-on-cuda"]
    assert "has never been run on a card" in on_card.violations[0].reason
    assert not on_cpu.violations


def test_importing_it_leaves_the_process_as_it_was():
    """With a number of threads in the environment Paddle warns of it, and without one it puts one there."""
    code = "import logging, os\nfrom core.compute.paddle_backend.framework import imported_quietly\n"
    code += "with imported_quietly():\n    import paddle\n"
    code += "print(os.environ.get('OMP_NUM_THREADS'), logging.getLogger().handlers)"
    for threads, found in (("2", "2 []"), (None, "None []")):
        env = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
        env |= {} if threads is None else {"OMP_NUM_THREADS": threads}
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=env, timeout=120)
        assert (done.stdout.strip(), done.stderr) == (found, "")


@pytest.mark.parametrize(
    ("vendor", "flags", "told"),
    [("AuthenticAMD", "fpu avx2 fma", True), ("GenuineIntel", "fpu avx2 fma", False), ("AuthenticAMD", "fpu avx", False)],
)
def test_its_mkl_is_told_of_avx2_where_it_would_not_look(tmp_path, monkeypatch, vendor, flags, told):
    monkeypatch.setenv(framework.PRODUCTS, "")  # so that it is put back as it was
    monkeypatch.delenv(framework.PRODUCTS)
    monkeypatch.setattr(framework, "CPUS", tmp_path / "cpuinfo")
    framework.CPUS.write_text(f"vendor_id\t: {vendor}\nflags\t\t: {flags}\n")
    with framework.imported_quietly():
        pass
    assert (os.environ.get(framework.PRODUCTS) == framework.AVX2) is told
    monkeypatch.setenv(framework.PRODUCTS, "4")
    with framework.imported_quietly():
        pass
    assert os.environ[framework.PRODUCTS] == "4"  # said by the user


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
