"""Any model, written as the GGUF file llama.cpp would read, so that it computes with the same weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

from core.errors import UserError
from core.interfaces.model import DecoderSpec, Tensor, Weight

_STORED = {
    "bfloat16": (GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "float16": (GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "float32": (GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
}
_PARTS = {
    "qkv": ("attn_q", "attn_k", "attn_v"),
    "o": ("attn_output",),
    "gate_up": ("ffn_gate", "ffn_up"),
    "down": ("ffn_down",),
}


def write_gguf(path: Path, spec: DecoderSpec, weights: Iterable[Weight], dtype: str) -> None:
    """Matrices as ``dtype``, norms as float32, no tokenizer. A rotation of halves becomes one of pairs, as llama.cpp wants.

    :raises UserError: for what the file cannot say.
    """
    if spec.rope_scaling:
        raise UserError.of("a model with scaled rotary positions is not written as GGUF here", "--against llama.cpp", "")
    kind, file_type = _STORED[dtype]
    writer = GGUFWriter(path, "ernie4_5")
    writer.add_file_type(file_type)
    writer.add_context_length(spec.max_positions)
    writer.add_embedding_length(spec.hidden)
    writer.add_block_count(spec.num_layers)
    writer.add_feed_forward_length(spec.intermediate)
    writer.add_head_count(spec.num_heads)
    writer.add_head_count_kv(spec.num_kv_heads)
    writer.add_key_length(spec.head_dim)
    writer.add_value_length(spec.head_dim)
    writer.add_rope_dimension_count(spec.head_dim)
    writer.add_rope_freq_base(spec.rope_theta)
    writer.add_layer_norm_rms_eps(spec.norm_eps)
    writer.add_vocab_size(spec.vocab)
    writer.add_tokenizer_model("none")
    for weight in weights:
        if weight.packed is not None:
            raise UserError.of("a model that was saved packed is not written as GGUF", "--model", "compare the unpacked one")
        for name, part in _named(weight, spec):
            if part.ndim == 1:
                writer.add_tensor(name, part.astype(np.float32))
            elif dtype == "bfloat16":
                import ml_dtypes

                stored = np.ascontiguousarray(part.astype(ml_dtypes.bfloat16, copy=False))
                writer.add_tensor(name, stored.view(np.uint8), raw_dtype=kind)
            else:
                writer.add_tensor(name, np.ascontiguousarray(part.astype(dtype, copy=False)), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _named(weight: Weight, spec: DecoderSpec) -> Iterator[tuple[str, Tensor]]:
    name = weight.name
    layer = f"blk.{name.layer}."
    if weight.tied:
        return
    match name.role, name.norm:
        case "embed", _:
            yield "token_embd.weight", weight.parts[0]
        case "head", _:
            yield "output.weight", weight.parts[0]
        case "norm", "final":
            yield "output_norm.weight", weight.parts[0]
        case "norm", which:
            yield f"{layer}{'attn_norm' if which == 'input' else 'ffn_norm'}.weight", weight.parts[0]
        case role, _:
            for part, stored in zip(weight.parts, _PARTS[role], strict=True):
                turned = spec.rope_style == "half" and stored in ("attn_q", "attn_k")
                yield f"{layer}{stored}.weight", _pairs(part, spec.head_dim) if turned else part


def _pairs(part: Tensor, head_dim: int) -> Tensor:
    """Rows of each head, so ordered that those which are rotated together lie side by side."""
    rows, columns = part.shape
    heads = part.reshape(rows // head_dim, 2, head_dim // 2, columns)
    pairs: Tensor = heads.swapaxes(1, 2).reshape(rows, columns)
    return pairs
