"""Where published checkpoints of the one decoder keep its weights: three ways to name and arrange the same numbers."""

from __future__ import annotations

from itertools import pairwise

from core.errors import UserError
from core.interfaces.model import DecoderSpec, Stored, WeightName

HF_LAYER: dict[str, str | tuple[str, ...]] = {
    "input": "input_layernorm",
    "post": "post_attention_layernorm",
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
GGUF_LAYER: dict[str, str | tuple[str, ...]] = {
    "input": "attn_norm",
    "post": "ffn_norm",
    "qkv": ("attn_q", "attn_k", "attn_v"),
    "o": ("attn_output",),
    "gate_up": ("ffn_gate", "ffn_up"),
    "down": ("ffn_down",),
}
PADDLE_FUSED = {"qkv": "self_attn.qkv_proj", "gate_up": "mlp.up_gate_proj"}


def did_not_find(name: str, names: frozenset[str]) -> UserError:
    return UserError.of(
        f"the checkpoint has no tensor {name!r} among its {len(names)}",
        "",
        "fetch the checkpoint again: it is incomplete, or its config.json belongs to another model",
    )


def stored_hf(weight: WeightName, spec: DecoderSpec, names: frozenset[str], prefix: str = "model.") -> tuple[Stored, ...]:
    """transformers: separate projections, stored [out, in]. Models saved without their head have no prefix."""
    if weight.role == "head" and not spec.tied_head:
        return find(("lm_head.weight",), names)
    if f"{prefix}embed_tokens.weight" not in names and "embed_tokens.weight" in names:
        prefix = ""
    return find(hf_names(weight, prefix), names)


def stored_paddle(weight: WeightName, spec: DecoderSpec, names: frozenset[str]) -> tuple[Stored, ...]:
    """Paddle: linears stored [in, out]; q|k|v and gate|up side by side along the last axis, or separate ones."""
    if weight.role == "head" and not spec.tied_head:
        return find(("lm_head.weight",), names, transposed=True)
    if weight.role in ("embed", "head", "norm"):
        return find(hf_names(weight, "ernie."), names)
    fused = f"ernie.layers.{weight.layer}.{PADDLE_FUSED.get(weight.role)}.weight"
    separate = hf_names(weight, "ernie.")
    if weight.role not in PADDLE_FUSED or (fused not in names and separate[0] in names):
        return find(separate, names, transposed=True)
    if fused not in names:
        raise did_not_find(fused, names)
    q, kv = spec.q_width, spec.kv_width
    edges = [0, q, q + kv, q + 2 * kv] if weight.role == "qkv" else [0, spec.intermediate, 2 * spec.intermediate]
    return tuple(Stored(fused, True, slice(start, end)) for start, end in pairwise(edges))


def stored_gguf(weight: WeightName, spec: DecoderSpec, names: frozenset[str]) -> tuple[Stored, ...]:
    """llama.cpp: separate projections, [out, in] once read; q and k rows of a Llama are in interleaved order."""
    if weight.role == "embed" or (weight.role == "head" and spec.tied_head):
        return find(("token_embd.weight",), names)
    if weight.role == "head":
        return find(("output.weight",), names)
    if weight.layer is None:
        return find(("output_norm.weight",), names)
    return find(layer_names(weight, f"blk.{weight.layer}.", GGUF_LAYER), names)


def hf_names(weight: WeightName, prefix: str) -> tuple[str, ...]:
    if weight.role in ("embed", "head"):
        return (f"{prefix}embed_tokens.weight",)
    if weight.layer is None:
        return (f"{prefix}norm.weight",)
    return layer_names(weight, f"{prefix}layers.{weight.layer}.", HF_LAYER)


def layer_names(weight: WeightName, prefix: str, table: dict[str, str | tuple[str, ...]]) -> tuple[str, ...]:
    inner = table[weight.norm if weight.role == "norm" else weight.role]
    return tuple(f"{prefix}{name}.weight" for name in ((inner,) if isinstance(inner, str) else inner))


def find(wanted: tuple[str, ...], names: frozenset[str], transposed: bool = False) -> tuple[Stored, ...]:
    for name in wanted:
        if name not in names:
            raise did_not_find(name, names)
    return tuple(Stored(name, transposed) for name in wanted)
