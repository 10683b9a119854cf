"""Keys and values in eight bits, each head of them behind the number that it is times of: what that takes. Imports no torch."""

from __future__ import annotations

SCALE_BYTES = 4  # that number, in float32


def head_bytes(eight: bool, head_dim: int, element_bytes: int) -> int:
    """Of a key or of a value; ``element_bytes``: of one of its numbers where it is not held in eight bits."""
    return head_dim + SCALE_BYTES if eight else head_dim * element_bytes
