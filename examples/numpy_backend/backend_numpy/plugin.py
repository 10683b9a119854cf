"""Offers the compute backend ``numpy``: every operation of the decoder in plain numpy, in float32 on a CPU."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from core.hookspecs import hookimpl
from core.interfaces.rules import Condition, Remedy, Rule
from core.offers import ComputeBackendOffer, Context

if TYPE_CHECKING:
    from core.interfaces.compute import ComputeBackend

PACKS_NOTHING = Rule(
    id="numpy-multiplies-by-no-packed-weights",
    when=(Condition("quantizer.bits", "!=", None),),
    reason="the compute backend numpy multiplies by float32 alone, and would hold the packed weights of {chosen.quantizer} "
    "unpacked, four bytes each",
    remedies=(
        Remedy("--quantization none", {"quantization": "none"}),
        Remedy("choose another compute backend"),
    ),
)


def create(context: Context) -> ComputeBackend:
    from backend_numpy.backend import NumpyBackend

    return NumpyBackend(context.settings["threads"])


@hookimpl
def register_compute_backends() -> Iterable[ComputeBackendOffer]:
    yield ComputeBackendOffer(
        name="numpy",
        summary="plain numpy, in float32 on a CPU",
        framework="numpy",
        requires=("numpy", "threadpoolctl"),
        create=create,
        devices=("cpu",),
        dtypes={"cpu": ("float32",)},
        exchanges=True,
        rules=(PACKS_NOTHING,),
    )
