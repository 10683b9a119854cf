"""Weights and activations in eight-bit floating point: weights by blocks of 128 x 128, activations by token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from core.hookspecs import hookimpl
from core.interfaces.rules import Condition, Remedy, Rule
from core.offers import Alias, Context, QuantizerOffer, Section

if TYPE_CHECKING:
    from core.interfaces.quantizer import Quantizer


class Fp8Settings(Section, frozen=True):
    head: bool = Field(False, description="pack the output head too, as a copy of its own where it is tied to the embedding")
    emulate: bool = Field(
        False, description="where the device has no such arithmetic, compute the same numbers in float32: slow, for tests"
    )


def stored_bits(section: Fp8Settings, role: str, in_features: int) -> float | None:
    return None if role == "head" and not section.head else 8 + 32 * -(-in_features // 128) / (128 * in_features)


def reads(quantization_config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The same blocks as DeepSeek's checkpoints and transformers' have them, but for the head all of the linears."""
    match quantization_config:
        case {"quant_method": "fp8", "weight_block_size": [128, 128], **more}:
            alike = more.get("fmt", "e4m3") == "e4m3" and more.get("activation_scheme", "dynamic") == "dynamic"
            left_alone = set(more.get("modules_to_not_convert") or ()) <= {"lm_head"}
            return {"head": False} if alike and left_alone else None
    return None


WAYS_OUT = (
    Remedy("--quantization wint8: eight bits too, on any device", {"quantization": "wint8"}),
    Remedy("a device of compute capability 8.9 or more: L20, L40S, H20, H100, H200 and later"),
    Remedy("--fp8-emulate: the same numbers in float32, slowly, for tests", {"quant_fp8.emulate": True}),
)
CHOSEN = Condition("chosen.quantizer", "==", "block_wise_fp8")  # so that its origin is told
NOT_EMULATED = Condition("settings.quant_fp8.emulate", "==", False)


@hookimpl
def register_quantizers() -> Iterable[QuantizerOffer]:
    def create(context: Context) -> Quantizer:
        from quant_fp8.pack import BlockFp8

        return BlockFp8(head=context.section.head)

    yield QuantizerOffer(
        name="block_wise_fp8",
        summary="eight-bit floating point, weights in blocks of 128 x 128, activations by token",
        bits=8,
        rounds_activations=True,
        stored_bits=stored_bits,
        head="head",
        at_load=frozenset({"emulate"}),
        reads=reads,
        create=create,
        settings=Fp8Settings,
        rules=(
            Rule(
                id="fp8-capability",
                when=(CHOSEN, Condition("device.capability", "<", 8.9), NOT_EMULATED),
                reason="fp8 needs compute capability 8.9, and {device.name} has {device.capability}",
                remedies=WAYS_OUT,
            ),
            Rule(
                id="fp8-on-a-cpu",
                when=(CHOSEN, Condition("device.kind", "==", "cpu"), NOT_EMULATED),
                reason="fp8 needs a CUDA device of compute capability 8.9, and this is a CPU",
                remedies=WAYS_OUT,
            ),
        ),
        aliases=(
            Alias("fp8 as vLLM spells it", flag="--quantization", value="fp8", chooses="block_wise_fp8"),
            Alias("compute fp8 in float32 where the device has none", flag="--fp8-emulate", sets="emulate"),
        ),
    )
