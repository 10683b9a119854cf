"""The decoder once more, in plain float64 numpy: slow, unpaged, and short enough to be checked by eye.

Every compute backend is tested against this. Sequences are computed one at a time, each with its keys and values in a list;
there are no pages, no batches and no fused operations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from core.interfaces.compute import LogitAdjustment
from core.interfaces.model import DecoderSpec, Weight, WeightName

Float = NDArray[np.float64]


def rounded(values: NDArray[Any], dtype: str) -> Float:
    """The values as a backend of this dtype holds them."""
    kinds: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
    return np.asarray(values).astype(np.float32).astype(kinds[dtype]).astype(np.float64)


def rms_norm(x: Float, weight: Float, eps: float) -> Float:
    out: Float = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight
    return out


def inverse_frequencies(spec: DecoderSpec) -> Float:
    """[head_dim / 2], scaled as the spec asks."""
    frequencies: Float = spec.rope_theta ** (-np.arange(0, spec.head_dim, 2, dtype=np.float64) / spec.head_dim)
    scaling = spec.rope_scaling
    if scaling is None:
        return frequencies
    kind = scaling.get("rope_type", scaling.get("type"))
    factor = float(scaling["factor"])
    if kind == "linear":
        return frequencies / factor
    if kind != "llama3":
        raise ValueError(f"rope scaling {kind!r}")
    turns = (
        float(scaling["original_max_position_embeddings"]) * frequencies / (2 * np.pi)
    )  # of each pair over the trained context
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)  # 1: fast pairs, as they are; 0: slow pairs, slowed by the factor
    mixed: Float = frequencies * (kept + (1 - kept) / factor)
    return mixed


def rotate(x: Float, positions: NDArray[Any], spec: DecoderSpec) -> Float:
    """x [T, heads, head_dim]; each pair of a head turned by its frequency times the position."""
    angles = positions.astype(np.float64)[:, None, None] * inverse_frequencies(spec)  # [T, 1, head_dim / 2]
    cos, sin = np.cos(angles), np.sin(angles)
    out = np.empty_like(x)
    half = spec.head_dim // 2
    first, second = (
        (slice(0, None, 2), slice(1, None, 2)) if spec.rope_style == "interleaved" else (slice(0, half), slice(half, None))
    )
    out[..., first] = x[..., first] * cos - x[..., second] * sin
    out[..., second] = x[..., second] * cos + x[..., first] * sin
    return out


def attend(q: Float, k: Float, v: Float) -> Float:
    """q [n, heads, dim] are the last n of the m positions of k, v [m, kv heads, dim]; each looks at those up to its own."""
    n, heads, dim = q.shape
    m, kv_heads, _ = k.shape
    k, v = (np.repeat(each, heads // kv_heads, axis=1) for each in (k, v))
    scores = np.einsum("nhd,mhd->hnm", q, k) / np.sqrt(dim)
    later = np.arange(m)[None, :] > np.arange(m - n, m)[:, None]
    scores[:, later] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    mixed: Float = np.einsum("hnm,mhd->nhd", weights, v)
    return mixed


def gated(both: Float) -> Float:
    """silu of the first half, times the second."""
    gate, up = np.split(both, 2, axis=-1)
    out: Float = gate / (1 + np.exp(-gate)) * up
    return out


def adjusted(logits: Float, adjustment: LogitAdjustment) -> Float:
    out = logits.copy()
    for row, token, value in zip(adjustment.bias_rows, adjustment.bias_tokens, adjustment.bias_values, strict=True):
        out[row, token] += value
    for row, token, count in zip(adjustment.seen_rows, adjustment.seen_tokens, adjustment.seen_counts, strict=True):
        value, repetition = out[row, token], float(adjustment.repetition[row])
        value = value / repetition if value > 0 else value * repetition
        out[row, token] = value - adjustment.frequency[row] * count - adjustment.presence[row] * (count > 0)
    out[adjustment.banned_rows, adjustment.banned_tokens] = -np.inf
    return out


def log_softmax(logits: Float) -> Float:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    out: Float = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return out


class ReferenceDecoder:
    """``weights`` as a checkpoint gives them, rounded to what a backend of ``dtype`` holds; all sums in float64."""

    def __init__(self, spec: DecoderSpec, weights: Mapping[WeightName, Weight], dtype: str = "float32") -> None:
        self.spec = spec
        self.weights = {name: rounded(np.concatenate(weight.parts), dtype) for name, weight in weights.items()}
        self.keys: dict[tuple[int, int], Float] = {}
        self.values: dict[tuple[int, int], Float] = {}

    def qkv(self, sequence: int, layer: int, hidden: Float, positions: NDArray[Any]) -> Float:
        """q [n, heads, dim], turned; k and v are appended to the sequence's."""
        spec = self.spec
        normed = rms_norm(hidden, self.weights[WeightName("norm", layer, "input")], spec.norm_eps)
        q, k, v = np.split(
            normed @ self.weights[WeightName("qkv", layer)].T, [spec.q_width, spec.q_width + spec.kv_width], axis=1
        )
        q = rotate(q.reshape(-1, spec.num_heads, spec.head_dim), positions, spec)
        k = rotate(k.reshape(-1, spec.num_kv_heads, spec.head_dim), positions, spec)
        v = v.reshape(-1, spec.num_kv_heads, spec.head_dim)
        key = (sequence, layer)
        self.keys[key] = np.concatenate([self.keys[key], k]) if key in self.keys else k
        self.values[key] = np.concatenate([self.values[key], v]) if key in self.values else v
        return q

    def attention(self, sequence: int, layer: int, q: Float) -> Float:
        mixed = attend(q, self.keys[sequence, layer], self.values[sequence, layer])
        return mixed.reshape(len(q), self.spec.q_width)

    def forget(self, sequence: int) -> None:
        for layer in range(self.spec.num_layers):
            self.keys.pop((sequence, layer), None)
            self.values.pop((sequence, layer), None)

    def forward(self, sequence: int, tokens: Sequence[int]) -> Float:
        """The logits [n, V] of all new tokens of a sequence."""
        spec, weights = self.spec, self.weights
        first = len(self.keys.get((sequence, 0), ()))
        positions = np.arange(first, first + len(tokens))
        hidden = weights[WeightName("embed")][list(tokens)]
        for layer in range(spec.num_layers):
            q = self.qkv(sequence, layer, hidden, positions)
            hidden = hidden + self.attention(sequence, layer, q) @ weights[WeightName("o", layer)].T
            normed = rms_norm(hidden, weights[WeightName("norm", layer, "post")], spec.norm_eps)
            hidden = hidden + gated(normed @ weights[WeightName("gate_up", layer)].T) @ weights[WeightName("down", layer)].T
        logits: Float = (
            rms_norm(hidden, weights[WeightName("norm", None, "final")], spec.norm_eps) @ weights[WeightName("head")].T
        )
        return logits
