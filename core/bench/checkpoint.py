"""Any model, written as the checkpoint transformers would have saved, so that two contestants load the same weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError
from core.interfaces.model import DecoderSpec, Tensor, Weight, WeightName, weight_names

_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_ARCHITECTURES = {"interleaved": ("Ernie4_5ForCausalLM", "ernie4_5"), "half": ("LlamaForCausalLM", "llama")}


def write_checkpoint(folder: Path, spec: DecoderSpec, weights: Iterable[Weight], dtype: str) -> None:
    """config.json and model.safetensors; one weight in memory at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_config(spec, dtype), indent=1), encoding="utf-8")
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    element = _numpy_dtype(dtype)
    end = 0
    for weight in weight_names(spec):
        for name, shape in _parts(weight, spec):
            start, end = end, end + int(np.prod(shape)) * element.itemsize
            header[name] = {"dtype": _DTYPES[dtype], "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for part in _in_order(spec, weights):
            file.write(np.ascontiguousarray(part.astype(element, copy=False)).view(np.uint8).data)


def _in_order(spec: DecoderSpec, weights: Iterable[Weight]) -> Iterator[Tensor]:
    for expected, weight in zip(weight_names(spec), weights, strict=True):
        if weight.name != expected:
            raise ValueError(f"{weight.name} came where {expected} was due")
        if weight.packed is not None:
            raise UserError.of(
                "transformers cannot load a model that was saved packed", "--model", "compare with the model that was packed"
            )
        if not weight.tied:
            yield from weight.parts


def _parts(weight: WeightName, spec: DecoderSpec) -> list[tuple[str, list[int]]]:
    """Names and shapes of what one weight is stored as; nothing for a tied head."""
    layer = f"model.layers.{weight.layer}."
    hidden = spec.hidden
    match weight.role, weight.norm:
        case "embed", _:
            return [("model.embed_tokens.weight", [spec.vocab, hidden])]
        case "head", _:
            return [] if spec.tied_head else [("lm_head.weight", [spec.vocab, hidden])]
        case "norm", "final":
            return [("model.norm.weight", [hidden])]
        case "norm", which:
            return [(layer + ("input_layernorm" if which == "input" else "post_attention_layernorm") + ".weight", [hidden])]
        case "qkv", _:
            widths = {"q": spec.q_width, "k": spec.kv_width, "v": spec.kv_width}
            return [(f"{layer}self_attn.{which}_proj.weight", [width, hidden]) for which, width in widths.items()]
        case "o", _:
            return [(layer + "self_attn.o_proj.weight", [hidden, spec.q_width])]
        case "gate_up", _:
            return [(f"{layer}mlp.{which}_proj.weight", [spec.intermediate, hidden]) for which in ("gate", "up")]
        case _:
            return [(layer + "mlp.down_proj.weight", [hidden, spec.intermediate])]


def _config(spec: DecoderSpec, dtype: str) -> dict[str, Any]:
    architecture, model_type = _ARCHITECTURES[spec.rope_style]
    scaling = dict(spec.rope_scaling) if spec.rope_scaling else None
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": spec.hidden,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "intermediate_size": spec.intermediate,
        "vocab_size": spec.vocab,
        "max_position_embeddings": spec.max_positions,
        "rope_theta": spec.rope_theta,
        "rope_parameters": {"rope_type": "default", **(scaling or {}), "rope_theta": spec.rope_theta},
        **({"rope_scaling": scaling} if scaling else {}),
        "rms_norm_eps": spec.norm_eps,
        "tie_word_embeddings": spec.tied_head,
        "hidden_act": "silu",
        "bos_token_id": spec.bos_token_id,
        "eos_token_id": list(spec.eos_token_ids) or None,
        "pad_token_id": spec.pad_token_id,
        "dtype": dtype,
    }


def _numpy_dtype(dtype: str) -> np.dtype[Any]:
    if dtype == "bfloat16":
        import ml_dtypes

        dtype = ml_dtypes.bfloat16
    return np.dtype(dtype)
