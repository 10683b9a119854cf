"""Rotary position embedding: a table of turns, and the turning of heads."""

from __future__ import annotations

import torch
from torch import Tensor

from core.compute import frequencies
from core.interfaces.model import DecoderSpec, RopeStyle


def inverse_frequencies(spec: DecoderSpec) -> Tensor:
    """Radians a position for each pair of a head, float64 [head_dim / 2]."""
    return torch.from_numpy(frequencies.inverse_frequencies(spec))


def table(spec: DecoderSpec, positions: int, device: torch.device) -> Tensor:
    """cos + i sin for each position and pair, complex64 [positions, head_dim / 2]. Angles are exact: float64 until here."""
    angles = torch.outer(torch.arange(positions, dtype=torch.float64), inverse_frequencies(spec))
    return torch.complex(angles.cos().float(), angles.sin().float()).to(device)


def rotate(heads: Tensor, turns: Tensor, style: RopeStyle) -> Tensor:
    """heads [T, heads, head_dim] turned by ``turns`` [T, 1, head_dim / 2], computed in float32."""
    tokens, number, width = heads.shape
    if style == "interleaved":
        pairs = torch.view_as_complex(heads.float().view(tokens, number, width // 2, 2))
        return torch.view_as_real(pairs * turns).view(tokens, number, width).to(heads.dtype)
    first, second = heads.view(tokens, number, 2, width // 2).float().unbind(2)
    turned = torch.view_as_real(torch.complex(first, second) * turns)  # [T, heads, head_dim / 2, 2]
    return turned.transpose(2, 3).to(heads.dtype).reshape(tokens, number, width)
