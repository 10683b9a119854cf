"""The paddle backend's offer. Paddle itself is imported when a backend is created, not before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

from core.hookspecs import hookimpl
from core.interfaces.rules import Condition, Fact, Remedy, Rule
from core.offers import ComputeBackendOffer, Context, RulesOffer

if TYPE_CHECKING:
    from core.interfaces.compute import ComputeBackend

CUDA = Fact("paddle.cuda", bool, "whether the installed PaddlePaddle is the package for CUDA devices; None when there is none")
ON_CPU = Condition("device.kind", "==", "cpu")
ON_CUDA = Condition("device.kind", "==", "cuda")
TORCH = Remedy("--backend torch", {"backend": "torch"})
RULES = (
    Rule(
        id="paddle-made-for-cpus",
        when=(ON_CUDA, Condition("paddle.cuda", "==", False)),
        reason="device is cuda, and the installed PaddlePaddle is the package for CPUs",
        remedies=(
            Remedy("--device cpu", {"device": "cpu"}),
            Remedy("install paddlepaddle-gpu in its place, from PaddlePaddle's own package index"),
        ),
    ),
    Rule(
        id="paddle-untried-on-cuda",
        when=(ON_CUDA, Condition("paddle.cuda", "==", True)),
        reason="what the paddle backend does on CUDA has never been run on a card: on a CPU the same operations pass every "
        "test, here nobody has seen them do so",
        remedies=(TORCH,),
        severity="warning",
    ),
    Rule(
        id="paddle-rounds-no-activations",
        when=(Condition("quantizer.rounds_activations", "==", True),),
        reason="{chosen.quantizer} rounds activations as well as weights, and PaddlePaddle has no such product: "
        "multiplied by unpacked weights alone the model would give other numbers",
        remedies=(Remedy("--quantization none", {"quantization": "none"}), TORCH),
    ),
    Rule(
        id="paddle-unpacks-on-a-cpu",
        when=(ON_CPU, Condition("quantizer.bits", "!=", None)),
        reason="on a CPU PaddlePaddle has no product by packed weights: those of {chosen.quantizer} are held unpacked in "
        "float32, four bytes each",
        remedies=(TORCH, Remedy("--quantization none", {"quantization": "none"})),
        severity="warning",
    ),
    Rule(
        id="paddle-unpacks-a-head-on-a-cpu",
        when=(ON_CPU, Condition("quantizer.bits", "==", None), Condition("chosen.head_quantizer", "!=", None)),
        reason="on a CPU PaddlePaddle has no product by packed weights: the head that {chosen.head_quantizer} packs is held "
        "unpacked in float32, four bytes a weight",
        remedies=(TORCH, Remedy("--head-quantization none", {"head_quantization": "none"})),
        severity="warning",
    ),
)


def create(context: Context) -> ComputeBackend:
    from core.compute.paddle_backend.ahead import PaddleBackend

    device = "cpu" if context.facts["device.kind"] == "cpu" else "cuda:0"
    return PaddleBackend(device, context.facts["compute.dtype"], context.settings["threads"])


@hookimpl
def register_compute_backends() -> Iterable[ComputeBackendOffer]:
    yield ComputeBackendOffer(
        name="paddle",
        summary="PaddlePaddle on a CUDA device, or in float32 on a CPU",
        framework="paddle",
        requires=("paddle",),
        ahead=("core.compute.paddle_backend.ahead",),
        create=create,
        dtypes={"cpu": ("float32",), "cuda": ("bfloat16", "float32")},
        exchanges=True,
        rules=RULES,
    )


@hookimpl
def register_rules() -> Iterable[RulesOffer]:
    def derive(facts: Mapping[str, Any]) -> Mapping[str, Any]:
        return {CUDA.name: True if _has("paddlepaddle-gpu") else False if _has("paddlepaddle") else None}

    yield RulesOffer(name="paddle", summary="which PaddlePaddle is installed", facts=(CUDA,), derive=derive)


def _has(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
