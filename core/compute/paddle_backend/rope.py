"""Rotary position embedding: a table of turns, and the turning of heads."""

from __future__ import annotations

import numpy as np
import paddle
from paddle import Tensor

from core.compute.frequencies import inverse_frequencies
from core.compute.paddle_backend.machine import Place, to_device
from core.interfaces.model import DecoderSpec, RopeStyle


def table(spec: DecoderSpec, positions: int, place: Place) -> Tensor:
    """cos + i sin for each position and pair, complex64 [positions, head_dim / 2]. Angles are exact: float64 until here."""
    angles = np.outer(np.arange(positions, dtype=np.float64), inverse_frequencies(spec))
    return to_device((np.cos(angles) + 1j * np.sin(angles)).astype(np.complex64), place)


def rotate(heads: Tensor, turns: Tensor, style: RopeStyle) -> Tensor:
    """heads [T, heads, head_dim] turned by ``turns`` [T, 1, head_dim / 2], computed in float32."""
    tokens, number, width = heads.shape
    wide = heads.cast("float32")
    if style == "interleaved":
        pairs = paddle.as_complex(wide.reshape([tokens, number, width // 2, 2]))
        return paddle.as_real(pairs * turns).reshape([tokens, number, width]).cast(heads.dtype)
    first, second = wide.reshape([tokens, number, 2, width // 2]).unbind(2)
    turned = paddle.as_real(paddle.complex(first, second) * turns)  # [T, heads, head_dim / 2, 2]
    return turned.transpose([0, 1, 3, 2]).reshape([tokens, number, width]).cast(heads.dtype)
