"""Weights in eight bits, one scale for each output channel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from core.hookspecs import hookimpl
from core.offers import Context, QuantizerOffer, Section

if TYPE_CHECKING:
    from core.interfaces.quantizer import Quantizer


class Wint8Settings(Section, frozen=True):
    head: bool = Field(True, description="pack the output head too, as a copy of its own where it is tied to the embedding")
    activations: Literal["int8", "int16"] = Field(
        "int8",
        description="what native kernels of a CPU round activations to, blocks of 32 with scales of their own: fast, or exact",
    )


def stored_bits(section: Wint8Settings, role: str, in_features: int) -> float | None:
    return None if role == "head" and not section.head else 8 + 32 / in_features


def reads(quantization_config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Symmetric eight bits a channel as compressed-tensors has them, four in a word or each by itself."""
    match quantization_config:
        case {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized" | "int-quantized" | "naive-quantized",
            "config_groups": {"group_0": group, **more},
        } if not more:
            match group:
                case {
                    "targets": ["Linear"],
                    "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
                }:
                    return {"head": False}
    return None


@hookimpl
def register_quantizers() -> Iterable[QuantizerOffer]:
    def create(context: Context) -> Quantizer:
        from quant_wint8.pack import RowInt8

        section: Wint8Settings = context.section
        return RowInt8(head=section.head, activations=section.activations)

    yield QuantizerOffer(
        name="wint8",
        summary="eight bits a weight, one scale for each output channel",
        bits=8,
        stored_bits=stored_bits,
        head="head",
        at_load=frozenset({"activations"}),
        reads=reads,
        create=create,
        settings=Wint8Settings,
    )
