"""Placed projections: in the model's dtype, as their checkpoint has them, or in a quantizer's format."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import ml_dtypes
import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import Tensor

from core.compute import parts
from core.compute.paddle_backend.machine import Place, adopted, to_device
from core.interfaces.compute import DType, Linear
from core.interfaces.model import DecoderSpec, Role, Weight
from core.interfaces.quantizer import Packed, Quantizer

Host = NDArray[np.generic]
HOST: dict[DType, type[np.generic]] = {"bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
MOST_SHARPENED = 256  # logits a row, on average: where more are alike, no order among them matters
BFLOAT16_EPS = 2.0**-7


class PaddleLinear(Linear):
    """A projection that paddle can apply. Subclasses hold the weight in their own format."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] -> [T, out]"""

    def logits(self, x: Tensor) -> Tensor:
        """The same in float32, for a head."""
        return self(x).cast("float32")


class DenseLinear(PaddleLinear):
    """``weight``: [out, in], or the [in, out] that Paddle's checkpoints store. Either is multiplied by as it lies."""

    def __init__(self, role: Role, weight: Tensor, format: str, *, turned: bool = False, shared: bool = False) -> None:
        """``turned``: the weight is [in, out]. ``shared``: its memory is another's."""
        shape = weight.shape[::-1] if turned else weight.shape
        super().__init__(role, shape, 0 if shared else weight.size * weight.element_size(), format)
        self.weight = weight
        self.turned = turned

    def __call__(self, x: Tensor) -> Tensor:
        return paddle.matmul(x, self.weight, transpose_y=not self.turned)

    def logits(self, x: Tensor) -> Tensor:
        return self(x) if x.dtype == paddle.float32 else sharpened(self(x), x, self.weight.T if self.turned else self.weight)


def sharpened(rounded: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Logits in float32, those near a row's best computed anew: rounded to bfloat16 they cannot be told apart.

    :param rounded: [R, V] in the dtype of ``x`` [R, in] and ``weight`` [V, in].
    """
    logits = rounded.cast("float32")
    best = logits.max(1, keepdim=True)
    near = (logits >= best - best.abs() * (2 * BFLOAT16_EPS)).nonzero()
    if 0 < len(near) <= MOST_SHARPENED * len(logits):
        rows, tokens = near[:, 0], near[:, 1]
        exact = paddle.index_select(x, rows).cast("float32") * paddle.index_select(weight, tokens).cast("float32")
        logits.index_put_((rows, tokens), exact.sum(1))
    return logits


@dataclass(frozen=True)
class Target:
    """Where weights go, and as what."""

    place: Place
    dtype: DType

    def tensor(self, host: Host) -> Tensor:
        """Of an array in this dtype that nobody else writes to."""
        return to_device(host.view(np.uint16), self.place) if self.dtype == "bfloat16" else adopted(host, self.place)


QuantizedKernel: TypeAlias = Callable[[Role, Packed, Target], PaddleLinear | None]
KERNELS: dict[str, QuantizedKernel] = {}
"""Linears that multiply by a packed layout as it is, by the layout's name. A kernel that the target lacks gives None.

The arrays may be mapped from a file: copy what is kept.
"""


def place(
    weight: Weight, spec: DecoderSpec, quantizer: Quantizer | None, target: Target, embedding: Tensor | None = None
) -> PaddleLinear:
    """``embedding``: the table of a tied model, when it is placed."""
    role = weight.name.role
    if quantizer is not None and role in quantizer.roles:
        return quantized(weight, spec, quantizer.of_role(role), target)
    if embedding is not None and weight.tied:
        return DenseLinear("head", embedding, f"{target.dtype}, the embedding it is tied to", shared=True)
    host, turned = stacked(weight, spec, target)
    return DenseLinear(role, target.tensor(host), f"{target.dtype}, [in, out]" if turned else target.dtype, turned=turned)


def quantized(weight: Weight, spec: DecoderSpec, quantizer: Quantizer, target: Target) -> PaddleLinear:
    role = weight.name.role
    kernel = KERNELS.get(quantizer.layout)
    if kernel is not None:
        linear = kernel(role, parts.packed(weight, quantizer), target)
        if linear is not None:
            return linear
    # Nothing multiplies by this layout here: hold its values in the model's dtype. Right, and no smaller.
    dense: Host = np.empty(spec.shape(role), HOST[target.dtype])
    for rows, values in parts.unpacked(weight, quantizer):
        dense[rows] = values
    return DenseLinear(role, target.tensor(dense), f"{quantizer.name} held as {target.dtype}")


def array(weight: Weight, spec: DecoderSpec, target: Target) -> Tensor:
    """The parts of an embedding or a norm, stacked and converted, in memory of its own."""
    host: Host = np.empty(spec.shape(weight.name.role), HOST[target.dtype])
    for rows, part in parts.dense(weight):
        copy(host[rows], part)
    return target.tensor(host)


def stacked(weight: Weight, spec: DecoderSpec, target: Target) -> tuple[Host, bool]:
    """The parts of a linear [out, in], or [in, out] where the checkpoint has them so: each row is copied as it lies."""
    turned = all(part.strides[0] < part.strides[1] for part in weight.parts)
    out_features, in_features = spec.shape(weight.name.role)
    shape = (in_features, out_features) if turned else (out_features, in_features)
    host: Host = np.empty(shape, HOST[target.dtype])
    for rows, part in parts.dense(weight):
        lying, own = (part.T, host[:, rows]) if turned else (part, host[rows])
        copy(own, lying)
    return host, turned


def copy(own: Host, part: Host) -> None:
    """bfloat16 becomes float32 by its bits, many times as fast as by its values."""
    if own.dtype == np.float32 and part.dtype == ml_dtypes.bfloat16:
        bits = own.view(np.uint32)
        bits[...] = part.view(np.uint16)
        bits <<= np.uint32(16)
    else:
        own[...] = part
