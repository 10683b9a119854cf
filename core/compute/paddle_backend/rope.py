"""Rotary position embedding: a table of turns, and the turning of heads."""

from __future__ import annotations

import math

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import Tensor

from core.compute.paddle_backend.machine import Place, to_device
from core.interfaces.model import DecoderSpec, RopeStyle


def inverse_frequencies(spec: DecoderSpec) -> NDArray[np.float64]:
    """Radians a position for each pair of a head [head_dim / 2]."""
    frequencies = spec.rope_theta ** (-np.arange(0, spec.head_dim, 2, dtype=np.float64) / spec.head_dim)
    scaling = spec.rope_scaling
    if scaling is None:
        return frequencies
    kind, factor = scaling.get("rope_type", scaling.get("type")), float(scaling["factor"])
    if kind == "linear":
        return frequencies / factor
    if kind != "llama3":
        raise ValueError(f"rope scaling {kind!r} should have been refused by the model's family")
    # Pairs that turn often within the trained context stay, those that hardly turn are slowed, a ramp joins the two.
    turns = float(scaling["original_max_position_embeddings"]) * frequencies / (2 * math.pi)
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    kept = ((turns - low) / (high - low)).clip(0.0, 1.0)
    slowed: NDArray[np.float64] = frequencies * (kept + (1 - kept) / factor)
    return slowed


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
