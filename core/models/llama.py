"""The Llama family as transformers saves it (Llama, SmolLM2): the same decoder with half-split rotary order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.interfaces.model import DecoderSpec, ModelFamily, Stored, WeightName
from core.models.config_keys import decoder_spec, require
from core.models.layouts import stored_hf

ACCEPTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "attention_bias": ((False,), "projections without bias"),
    "mlp_bias": ((False,), "projections without bias"),
    "hidden_act": (("silu", "swish"), "silu"),
    "quantization_config": (({},), "unpacked checkpoints; pack one at load with --quantization"),
}


class Llama(ModelFamily):
    architectures = ("LlamaForCausalLM",)

    def spec(self, config: Mapping[str, Any]) -> DecoderSpec:
        require(config, ACCEPTED)
        return decoder_spec(config, rope_style="half", rope_theta=10000.0, norm_eps=1e-6, tied_head=False, max_positions=2048)

    def stored(self, weight: WeightName, spec: DecoderSpec, names: frozenset[str]) -> tuple[Stored, ...]:
        return stored_hf(weight, spec, names)
