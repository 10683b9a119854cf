"""The torch backend's offer. Torch itself is imported when a backend is created, not before."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from core.hookspecs import hookimpl
from core.offers import ComputeBackendOffer, Context

if TYPE_CHECKING:
    from core.interfaces.compute import ComputeBackend


def create(context: Context) -> ComputeBackend:
    from core.compute.torch_backend.backend import TorchBackend

    device = "cpu" if context.facts["device.kind"] == "cpu" else f"cuda:{context.facts.get('parallel.rank', 0)}"
    return TorchBackend(device, context.facts["compute.dtype"], threads=context.settings["threads"])


@hookimpl
def register_compute_backends() -> Iterable[ComputeBackendOffer]:
    yield ComputeBackendOffer(
        name="torch",
        summary="PyTorch on a CPU or a CUDA device",
        framework="torch",
        requires=("torch",),
        create=create,
        splits=True,
    )
