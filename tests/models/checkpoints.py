"""Small random models by transformers, and writers of every checkpoint layout Dovetail reads. Plain functions, for any test."""

import json
import struct
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import torch
from transformers import Ernie4_5Config, Ernie4_5ForCausalLM, LlamaConfig, LlamaForCausalLM

# head_dim * heads != hidden, as in ERNIE-4.5-0.3B
TINY = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def ernie_model(seed=0, dtype=torch.float32, **changes):
    torch.manual_seed(seed)
    model = Ernie4_5ForCausalLM(Ernie4_5Config(**{**TINY, "tie_word_embeddings": True, **changes}))
    return unlike_fresh(model, seed).to(dtype).eval()


def llama_model(seed=0, dtype=torch.float32, **changes):
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**TINY, "tie_word_embeddings": True, **changes}))
    return unlike_fresh(model, seed).to(dtype).eval()


def unlike_fresh(model, seed, spread=0.15):
    """Norm weights away from 1 and larger linears, so that no misplaced weight goes unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * spread
            parameter.copy_(1 + noise if name.endswith("norm.weight") else noise)
    return model


def save_pt(model, folder, **options):
    """As transformers saves it; ``max_shard_size="20KB"`` gives shards and an index."""
    model.save_pretrained(folder, **options)
    return Path(folder)


def save_paddle(model, folder):
    """The same weights as a -Paddle checkpoint: ``ernie.`` names, [in, out] linears, fused qkv and up_gate."""
    config = model.config
    state = {name: to_numpy(tensor) for name, tensor in model.state_dict().items()}
    paddle_config = {
        "architectures": ["Ernie4_5_ForCausalLM"],
        "model_type": "ernie4_5",
        "dtype": str(model.dtype).removeprefix("torch."),
        "rope_theta": config.rope_parameters["rope_theta"],
        "rms_norm_eps": config.rms_norm_eps,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tie_word_embeddings,
        # keys only Paddle's own code reads
        "use_bias": False,
        "use_rmsnorm": True,
        "fuse_rope": True,
        "use_flash_attention": True,
        "weight_share_add_bias": True,
        "compression_ratio": 1.0,
        "tensor_parallel_degree": 1,
        **{key: getattr(config, key) for key in TINY},
    }
    return write_checkpoint(folder, paddle_config, paddle_arrays(state, paddle_config))


def paddle_arrays(state, config):
    """Tensors by transformers' names -> the same by -Paddle's."""
    written = {"ernie.embed_tokens.weight": state["model.embed_tokens.weight"], "ernie.norm.weight": state["model.norm.weight"]}
    if not config["tie_word_embeddings"]:
        written["lm_head.weight"] = state["lm_head.weight"].T
    for layer in range(config["num_hidden_layers"]):
        theirs, ours = f"model.layers.{layer}.", f"ernie.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            written[f"{ours}{norm}.weight"] = state[f"{theirs}{norm}.weight"]
        qkv = [state[f"{theirs}self_attn.{part}_proj.weight"].T for part in "qkv"]
        gate_up = [state[f"{theirs}mlp.{part}_proj.weight"].T for part in ("gate", "up")]
        written[f"{ours}self_attn.qkv_proj.weight"] = np.concatenate(qkv, axis=-1)
        written[f"{ours}mlp.up_gate_proj.weight"] = np.concatenate(gate_up, axis=-1)
        written[f"{ours}self_attn.o_proj.weight"] = state[f"{theirs}self_attn.o_proj.weight"].T
        written[f"{ours}mlp.down_proj.weight"] = state[f"{theirs}mlp.down_proj.weight"].T
    return written


def write_checkpoint(folder, config, tensors):
    """config.json and model.safetensors of numpy arrays, written here: no other library between the arrays and the file."""
    codes = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(ml_dtypes.bfloat16): "BF16"}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    header, at = {}, 0
    for name, array in tensors.items():
        header[name] = {"dtype": codes[array.dtype], "shape": array.shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array).view(np.uint8).data)
    return folder


def to_numpy(tensor):
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def interleaved(rows, heads):
    """Half-split rotary rows in interleaved order: row j of a head's first half to 2j, of the second to 2j + 1."""
    halves = rows.reshape(heads, 2, -1, rows.shape[-1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def save_gguf(model, path, kind=gguf.GGMLQuantizationType.F32, extra=None, metadata=None):
    """A GGUF file as llama.cpp's converter writes one: matrices as ``kind``, norms float32, a Llama's q and k interleaved."""
    config = model.config
    is_llama = isinstance(model, LlamaForCausalLM)
    writer = gguf.GGUFWriter(path, "llama" if is_llama else "ernie4_5")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    for key, value in (metadata or {}).items():
        getattr(writer, key)(*value)
    tensors = {}
    for name, tensor in model.state_dict().items():
        values = tensor.float().numpy()
        if name == "lm_head.weight":
            if not config.tie_word_embeddings:
                tensors["output.weight"] = values
        elif name.startswith("model.layers."):
            _, _, layer, inner = name.removesuffix(".weight").split(".", 3)
            if is_llama and inner.endswith(("q_proj", "k_proj")):
                heads = config.num_attention_heads if inner.endswith("q_proj") else config.num_key_value_heads
                values = interleaved(values, heads)
            tensors[f"blk.{layer}.{GGUF_NAMES[inner]}.weight"] = values
        else:
            tensors[{"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]] = (
                values
            )
    for name, values in tensors.items():
        if values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def formats():
    """Every checkpoint format of the core, by name."""
    from core.models.plugin import register_checkpoint_formats

    return {offer.name: offer.create() for offer in register_checkpoint_formats()}


def family(config):
    from core.models.plugin import register_models

    [architecture] = config["architectures"]
    return next(offer.family() for offer in register_models() if architecture in offer.architectures)


def opened(path):
    """(checkpoint, family, spec) of a folder or file on disk, or of a random: name."""
    from core.models.loading import open_checkpoint, read_config
    from core.models.sources import resolve

    folder = resolve(str(path), {}, formats())
    config = read_config(folder, formats())
    chosen = family(config)
    return open_checkpoint(folder, formats()), chosen, chosen.spec(config)


def canonical(path):
    """Canonical name -> the whole weight [out, in], copied, of a checkpoint on disk."""
    from core.models.loading import weights

    checkpoint, chosen, spec = opened(path)
    found = {str(weight.name): np.concatenate(weight.parts) for weight in weights(checkpoint, chosen, spec)}
    checkpoint.close()
    return found
