"""Placed projections: in the model's dtype, packed for oneDNN, or in a quantizer's format."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from core.compute import parts
from core.interfaces.compute import Linear
from core.interfaces.model import DecoderSpec, Role, Weight
from core.interfaces.quantizer import Packed, Quantizer

MOST_SHARPENED = 256  # logits a row, on average: where more are alike, no order among them matters
_BY_BITS: dict[str, tuple[type[np.generic], torch.dtype]] = {  # what numpy holds through ml_dtypes
    "bfloat16": (np.int16, torch.bfloat16),
    "float8_e4m3fn": (np.uint8, torch.float8_e4m3fn),
    "float8_e5m2": (np.uint8, torch.float8_e5m2),
}


class TorchLinear(Linear):
    """A projection that torch can apply. Subclasses hold the weight in their own format."""

    native = 0  # address of its description, where native kernels multiply by it
    row_by_row = False  # whether a row's product has the same bits whatever other rows are multiplied with it

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] -> [T, out]"""

    def logits(self, x: Tensor) -> Tensor:
        """The same in float32, for a head."""
        return self(x).float()


class DenseLinear(TorchLinear):
    def __init__(self, role: Role, weight: Tensor, format: str, *, shared: bool = False) -> None:
        super().__init__(role, weight.shape, 0 if shared else weight.nbytes, format)
        self.weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight)

    def logits(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            return self(x)
        if x.is_cuda:
            return torch.mm(x, self.weight.T, out_dtype=torch.float32)
        return sharpened(self(x), x, self.weight)


class EvenLinear(DenseLinear):
    """Multiplies so many rows at a time, always: a library picks how to sum by how many there are, and by nothing else here."""

    ROWS = 16
    row_by_row = True

    def __call__(self, x: Tensor) -> Tensor:
        filled = functional.pad(x, (0, 0, 0, -len(x) % self.ROWS))
        out = torch.empty((len(filled), self.out_features), dtype=x.dtype, device=x.device)
        for first in range(0, len(filled), self.ROWS):
            rows = slice(first, first + self.ROWS)
            torch.mm(filled[rows], self.weight.T, out=out[rows])
        return out[: len(x)]


class PackedLinear(TorchLinear):
    """Rearranged once into the blocks oneDNN multiplies by, instead of anew in every step: 1.3 to 3 times as fast."""

    def __init__(self, role: Role, weight: Tensor, format: str) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        self._apply = torch.ops.mkldnn._linear_pointwise.default
        # Only oneDNN knows the blocks' size; padding is part of it.
        super().__init__(role, weight.shape, int(torch.ops.mkldnn._nbytes(self._weight)), format)

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = self._apply(in_few_sizes(x), self._weight, None, "none", [], None)
        return out[: len(x)]


def in_few_sizes(x: Tensor) -> Tensor:
    """``x`` [T, in] with as many rows of zeros below as make T one of a few dozen numbers.

    For each T it meets oneDNN compiles a kernel, of a millisecond and 0.7 MB, and keeps the last thousand: a server whose
    steps are of every size would grow by hundreds of megabytes. A kernel's blocks are of about these sizes anyway.
    """
    more = few_sizes(len(x)) - len(x)
    return functional.pad(x, (0, 0, 0, more)) if more else x


def few_sizes(number: int) -> int:
    """As many rows or a few more: one of a few dozen numbers."""
    step = 1 if number <= 16 else 8 if number <= 64 else 32 if number <= 256 else 64 if number <= 512 else 256
    return number + -number % step


class TiedHead(PackedLinear):
    """Packed beside the embedding, whose rows stay at hand."""

    def __init__(self, embedding: Tensor, format: str) -> None:
        super().__init__("head", embedding, f"{format} packed for oneDNN, beside the embedding it is tied to")
        self._embedding = embedding

    def logits(self, x: Tensor) -> Tensor:
        return sharpened(self(x), x, self._embedding)


def sharpened(rounded: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Logits in float32, those near a row's best computed anew: rounded to the model's dtype they cannot be told apart.

    A bfloat16 near 25 is a multiple of 1/8: the likeliest tokens tie, and the lowest id among them would win. What is
    more than two steps of the dtype below the best keeps its rounded value and its place behind it.

    :param rounded: [R, V] in the dtype of ``x`` [R, in] and ``weight`` [V, in].
    """
    logits = rounded.float()
    best = logits.amax(1, keepdim=True)
    rows, tokens = (logits >= best - best.abs() * (2 * torch.finfo(x.dtype).eps)).nonzero(as_tuple=True)
    if len(rows) <= MOST_SHARPENED * len(logits):
        logits[rows, tokens] = (x[rows].float() * weight[tokens].float()).sum(1)
    return logits


@dataclass(frozen=True)
class Target:
    """Where weights go, and as what."""

    device: torch.device
    dtype: torch.dtype

    @property
    def format(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def packs(self) -> bool:
        return self.device.type == "cpu" and onednn_packs(self.dtype)

    def empty(self, shape: tuple[int, ...]) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def linear(self, role: Role, dense: Tensor, format: str) -> TorchLinear:
        return PackedLinear(role, dense, f"{format} packed for oneDNN") if self.packs else DenseLinear(role, dense, format)

    def dense(self, weight: Weight, spec: DecoderSpec) -> TorchLinear:
        """A projection in the model's dtype."""
        return self.linear(weight.name.role, array(weight, spec, self), self.format)

    def tied_head(self, embedding: Tensor) -> TorchLinear:
        if self.packs:
            return TiedHead(embedding, self.format)
        return DenseLinear("head", embedding, f"{self.format}, the embedding it is tied to", shared=True)

    def kernel(self, layout: str) -> QuantizedKernel | None:
        """What multiplies by this packed layout here."""
        return KERNELS.get(layout)

    def kernel_of(self, quantizer: Quantizer) -> QuantizedKernel | None:
        """What multiplies here by what this quantizer packs."""
        return self.kernel(quantizer.layout)


QuantizedKernel: TypeAlias = Callable[[Role, Packed, Target], TorchLinear | None]
KERNELS: dict[str, QuantizedKernel] = {}
"""Linears that multiply by a packed layout as it is, by the layout's name. A kernel that the target lacks gives None.

The arrays may be mapped from a file: copy what is kept.
"""


def place(
    weight: Weight, spec: DecoderSpec, quantizer: Quantizer | None, target: Target, embedding: Tensor | None = None
) -> TorchLinear:
    """``embedding``: the table of a tied model, when it is placed."""
    role = weight.name.role
    if quantizer is not None and role in quantizer.roles:
        return quantized(weight, spec, quantizer.of_role(role), target)
    if embedding is None or not weight.tied:
        return target.dense(weight, spec)
    return target.tied_head(embedding)


def quantized(weight: Weight, spec: DecoderSpec, quantizer: Quantizer, target: Target) -> TorchLinear:
    role = weight.name.role
    kernel = target.kernel_of(quantizer)
    if kernel is not None:
        linear = kernel(role, parts.packed(weight, quantizer), target)
        if linear is not None:
            return linear
    # Nothing multiplies by this layout here: hold its values in the model's dtype. Right, and no smaller.
    dense = target.empty(spec.shape(role))
    for rows, values in parts.unpacked(weight, quantizer):
        dense[rows].copy_(torch.from_numpy(values))
    return target.linear(role, dense, f"{quantizer.name} held as {target.format}")


def array(weight: Weight, spec: DecoderSpec, target: Target) -> Tensor:
    """The parts of a weight, stacked and converted, in memory of its own."""
    out = target.empty(spec.shape(weight.name.role))
    for rows, part in parts.dense(weight):
        out[rows].copy_(borrowed(part))
    return out


def borrowed(part: NDArray[np.generic]) -> Tensor:
    """The memory of an array as a tensor, which must only be read."""
    bits = _BY_BITS.get(part.dtype.name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # mapped files are not
        return torch.from_numpy(part) if bits is None else torch.from_numpy(part.view(bits[0])).view(bits[1])


@cache
def onednn_packs(dtype: torch.dtype) -> bool:
    """Whether this torch on this CPU multiplies by packed weights of this dtype, and rightly. The operations are not public.

    float32 is not packed: who asks for it wants exactness, and oneDNN's order of summing takes the demo's logits about
    twice as far from transformers' as the usual one.
    """
    supported = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    try:
        if dtype not in supported or not getattr(torch.ops.mkldnn, supported[dtype])():
            return False
        ramp = torch.arange(48 * 80).remainder(37).sub(18).to(dtype).view(48, 80)
        linear = PackedLinear("o", ramp, "")
        return all(torch.allclose(linear(ramp[:rows]), functional.linear(ramp[:rows], ramp), rtol=1e-2) for rows in (1, 5))
    except (AttributeError, RuntimeError, TypeError):
        return False
