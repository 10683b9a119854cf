"""How fast each pair of a head turns: the same numbers in every framework."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from core.interfaces.model import DecoderSpec


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
    # Pairs that turn often within the trained context stay as they are, those that hardly turn are slowed by the factor,
    # and a ramp joins the two.
    turns = float(scaling["original_max_position_embeddings"]) * frequencies / (2 * math.pi)
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    kept = ((turns - low) / (high - low)).clip(0.0, 1.0)
    slowed: NDArray[np.float64] = frequencies * (kept + (1 - kept) / factor)
    return slowed
