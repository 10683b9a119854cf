"""The format: eight bits a weight and one float32 scale for each output channel, symmetric."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.interfaces.model import Role
from core.interfaces.quantizer import Packed, Quantizer

LAYERS: frozenset[Role] = frozenset({"qkv", "o", "gate_up", "down"})
LARGEST = np.float32(127)


class RowInt8(Quantizer):
    """weight[n, k] = codes[n, k] * scale[n]; the largest weight of a row is 127 steps from zero.

    ``activations``: what a fast path may round activations to. It is no part of the weights' values.
    """

    name = "wint8"
    layout = "int8_row"

    def __init__(self, *, head: bool = True, activations: str = "int8") -> None:
        self.roles = LAYERS | {"head"} if head else LAYERS
        self._activations = activations

    def pack(self, weight: NDArray[np.float32]) -> Packed:
        scale = np.abs(weight).max(axis=1) / LARGEST
        steps = np.divide(weight, scale[:, None], out=np.zeros_like(weight, order="C"), where=scale[:, None] > 0)
        # Below the smallest normal number a scale is coarse, and the largest weight may lie a few steps beyond it.
        codes = np.clip(np.rint(steps, out=steps), -LARGEST, LARGEST).astype(np.int8)
        rows, columns = weight.shape
        return Packed((rows, columns), {"codes": codes, "scale": scale}, {"activations": self._activations})

    def unpack(self, packed: Packed) -> NDArray[np.float32]:
        values: NDArray[np.float32] = packed.arrays["codes"] * packed.arrays["scale"][:, None]
        return values

    def adopt(self, tensors: dict[str, NDArray[Any]], shape: tuple[int, int]) -> Packed:
        scale = tensors.pop("weight_scale")
        if "weight_packed" in tensors:
            words = np.ascontiguousarray(tensors.pop("weight_packed"))  # four codes a word, 128 added to each
            codes = (words.view(np.uint8) ^ np.uint8(128)).view(np.int8)
            if tuple(tensors.pop("weight_shape", shape)) != shape:
                raise ValueError(f"it is not of shape {list(shape)}")
        else:
            codes = tensors.pop("weight")
        if scale.shape != (shape[0], 1):
            raise ValueError(f"its scales are {list(scale.shape)} instead of {[shape[0], 1]}")
        return Packed(shape, {"codes": codes, "scale": scale[:, 0].astype(np.float32)}, {"activations": self._activations})

    def columns(self, packed: Packed, first: int, last: int) -> Packed:
        arrays = {"codes": np.ascontiguousarray(packed.arrays["codes"][:, first:last]), "scale": packed.arrays["scale"]}
        return Packed((packed.shape[0], last - first), arrays, packed.constants)

    def bits_per_weight(self, in_features: int) -> float:
        return bits_per_weight(in_features)

    def tile(self) -> Any | None:
        try:
            from quant_wint8.tile import tile
        except ImportError:  # without Triton
            return None
        return tile


def bits_per_weight(in_features: int) -> float:
    return 8 + 32 / in_features
