"""Weights in four bits, one scale for each group of a row; the head in eight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from core.hookspecs import hookimpl
from core.interfaces.rules import Condition, FactRef, Remedy, Rule
from core.offers import Context, QuantizerOffer, Section

if TYPE_CHECKING:
    from core.interfaces.quantizer import Quantizer


class Wint4Settings(Section, frozen=True):
    group_size: Literal[0, 32, 64, 128] = Field(128, description="weights that share a scale; 0 or -1: a whole row")
    search: bool = Field(False, description="try several scales for each group and keep the best: slower to load, closer")
    pad: bool = Field(False, description="fill up rows that groups do not divide, with zeros that are stored")
    head: bool = Field(True, description="pack the output head too, in eight bits, as a copy of its own where it is tied")
    activations: Literal["int8", "int16"] = Field(
        "int8",
        description="what native kernels of a CPU round activations to, blocks of 32 with scales of their own: fast, or exact",
    )

    @field_validator("group_size", mode="before")
    @classmethod
    def _minus_one_is_a_whole_row(cls, value: object) -> object:
        if isinstance(value, str) and value.removeprefix("-").isdecimal():
            value = int(value)
        return 0 if value == -1 else value


def stored_bits(section: Wint4Settings, role: str, in_features: int) -> float | None:
    if role == "head":
        return 8 + 32 / in_features if section.head else None
    unit = section.group_size or 2
    stored = -(-in_features // unit) * unit
    return (4 * stored + 16 * (stored // section.group_size if section.group_size else 1)) / in_features


def reads(quantization_config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Symmetric four bits as compressed-tensors packs them: the same steps, two a byte in the same order."""
    match quantization_config:
        case {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": group, **more}}:
            match group:
                case {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "symmetric": True, **weights}}:
                    size = 0 if weights.get("strategy") == "channel" else weights.get("group_size")
                    if not more and size in (0, 32, 64, 128) and weights.get("strategy") in ("channel", "group"):
                        return {"group_size": size, "search": False, "pad": False, "head": False}
    return None


def _groups_divide(what: str, width: str) -> Rule:
    return Rule(
        id=f"wint4-groups-do-not-divide-{what.replace(' ', '-')}",
        when=(
            Condition("chosen.quantizer", "==", "wint4"),  # a head alone has no groups
            Condition("settings.quant_wint4.pad", "==", False),
            Condition("settings.quant_wint4.group_size", ">", 0),
            Condition("settings.quant_wint4.group_size", "not divides", FactRef(width)),
        ),
        reason=f"groups of {{settings.quant_wint4.group_size}} weights do not divide the {what} width {{{width}}}",
        remedies=(
            Remedy("--quant-wint4-pad: fill each row up with zeros", {"quant_wint4.pad": True}),
            Remedy("--quant-wint4-group-size 0: one scale a row", {"quant_wint4.group_size": 0}),
        ),
    )


@hookimpl
def register_quantizers() -> Iterable[QuantizerOffer]:
    def create(context: Context) -> Quantizer:
        from quant_wint4.pack import GroupInt4, RowInt8

        section: Wint4Settings = context.section
        head = RowInt8(section.activations) if section.head else None
        return GroupInt4(section.group_size, search=section.search, pad=section.pad, head=head, activations=section.activations)

    yield QuantizerOffer(
        name="wint4",
        summary="four bits a weight, one scale for each group of a row",
        bits=4,
        stored_bits=stored_bits,
        head="head",
        at_load=frozenset({"activations"}),
        reads=reads,
        create=create,
        settings=Wint4Settings,
        rules=(
            _groups_divide("hidden", "model.hidden"),
            _groups_divide("attention", "shard.q_width"),
            _groups_divide("feed-forward", "shard.intermediate"),
        ),
    )
