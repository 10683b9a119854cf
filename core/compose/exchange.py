"""What a compute backend's framework means for the others: its number formats, and who can be lent its arrays."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from core.compose.choose import Selection


def number_formats(backend: Any, device: str) -> tuple[str, ...] | None:
    """Those the backend's offer names for this kind of device, the best first; None when it names none."""
    return getattr(backend, "dtypes", {}).get(device)


def framework_between(selection: Selection) -> str | None:
    """As whose arrays the sampler is lent the backend's logits; None when it takes them as they are, or cannot be lent them."""
    backend, sampler = selection.offer("compute_backend"), selection.offer("sampler")
    if backend is None or sampler is None or not backend.exchanges or backend.framework in sampler.frameworks:
        return None
    return next((name for name in sorted(sampler.frameworks) if is_importable(name)), None)


def is_importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False
