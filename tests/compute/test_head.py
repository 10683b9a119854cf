"""A head in eight bits beside linears of every kind: logits against float64, bytes, rows, and what stays as it was."""

import numpy as np
import pytest
import torch

from core.compute.torch_backend.backend import TorchBackend
from core.compute.torch_backend.native.backend import NativeBackend
from core.interfaces.model import WeightName
from core.interfaces.quantizer import ByRole
from core.testing.inputs import random_weights, tiny_spec
from quant_fp8.pack import BlockFp8
from quant_wint4.pack import GroupInt4
from quant_wint8.pack import RowInt8

LAYERS = {"as they are": None, "wint8": RowInt8(head=False), "wint4": GroupInt4(32, head=RowInt8()), "fp8": BlockFp8(head=True)}
BACKENDS = {
    "native": lambda: NativeBackend("bfloat16", 1),
    "native, float32": lambda: NativeBackend("float32", 1),
    "reference": lambda: TorchBackend("cpu", "bfloat16", 1),
}
HEAD = WeightName("head")


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activations", ["int8", "int16"])
def test_logits_are_those_of_its_values(backend, layers, tied, activations):
    native = backend.startswith("native")
    made, spec = BACKENDS[backend](), tiny_spec(hidden=256, vocab=500, tied_head=tied)
    head = RowInt8(activations=activations)
    quantizer, alone = ByRole(LAYERS[layers], head), LAYERS[layers]
    weights = random_weights(spec)
    placed = {name: made.place(weights[name], spec, quantizer) for name in (WeightName("embed"), HEAD)}
    linear = placed[HEAD]
    values = head.unpack(head.pack(weights[HEAD].parts[0])).astype(np.float64)
    x = torch.randn(33, 256, generator=torch.Generator().manual_seed(0)).to(
        torch.float32 if "32" in backend else torch.bfloat16
    )
    right = x.double().numpy() @ values.T
    error = np.abs(linear.logits(x).numpy() - right).max() / np.abs(right).max()
    assert error < (1e-2 if native and activations == "int8" else 5e-5)
    assert linear.logits(x).dtype == torch.float32
    assert (linear.logits(x).argmax(1).numpy() == right.argmax(1)).mean() > 0.95
    for rows in (1, 7):
        assert torch.equal(linear.logits(x)[:rows], linear.logits(x[:rows])), "alone and among others, to the bit"
    dense = made.place(weights[HEAD], tiny_spec(hidden=256, vocab=500, tied_head=False), None)
    assert linear.nbytes < 0.7 * dense.nbytes
    other = BACKENDS[backend]()
    for role in ("o", "down"):
        name = WeightName(role, 0)
        assert made.place(weights[name], spec, quantizer).format == other.place(weights[name], spec, alone).format


def test_a_part_that_nobody_packs_is_none():
    assert ByRole(RowInt8(), None).roles == {"qkv", "o", "gate_up", "down"}
    assert ByRole(None, RowInt8()).roles == {"head"}
    mixed = ByRole(GroupInt4(32, head=RowInt8()), RowInt8(activations="int16"))
    assert mixed.name == "wint4 and wint8"
    assert mixed.of_role("head").pack(np.eye(32, dtype=np.float32)).constants == {"activations": "int16"}
    assert mixed.of_role("o").layout == "int4_group"
    with pytest.raises(LookupError, match="head is not packed"):
        ByRole(RowInt8(), None).of_role("head")
    with pytest.raises(ValueError, match="neither the layers nor the head"):
        ByRole(None, None)
