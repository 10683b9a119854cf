"""The ERNIE-4.5 family: -PT and -Paddle checkpoints, and GGUF files, whose Llamas have ERNIE's rotary order already."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from core.interfaces.model import DecoderSpec, FamilyText, ModelFamily, Stored, WeightName
from core.models.config_keys import decoder_spec, require
from core.models.layouts import stored_gguf, stored_hf, stored_paddle

ACCEPTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "use_bias": ((False,), "projections without bias"),
    "hidden_act": (("silu", "swish"), "silu"),
    "use_rmsnorm": ((True,), "RMS norms"),
    "compression_ratio": ((1, 1.0), "a compression ratio of 1"),  # -Paddle: positions are divided by it
    "moe_num_experts": ((0,), "dense feed-forward layers"),
    "quantization_config": (({},), "unpacked checkpoints; pack one at load with --quantization"),
}


class Ernie45(ModelFamily):
    architectures = ("Ernie4_5_ForCausalLM", "Ernie4_5ForCausalLM")

    def spec(self, config: Mapping[str, Any]) -> DecoderSpec:
        require(config, ACCEPTED)
        return decoder_spec(config, rope_style="interleaved", rope_theta=500000.0, norm_eps=1e-5, tied_head=True)

    def stored(self, weight: WeightName, spec: DecoderSpec, names: frozenset[str]) -> tuple[Stored, ...]:
        if any(name.startswith("ernie.") for name in names):
            return stored_paddle(weight, spec, names)
        if any(name.startswith("blk.") for name in names):
            return stored_gguf(weight, spec, names)
        return stored_hf(weight, spec, names)

    def text(self) -> FamilyText:
        template = files("core.models").joinpath("templates/ernie_4_5.jinja").read_text(encoding="utf-8")
        return FamilyText(template, {"temperature": 1.0, "top_p": 0.7})
