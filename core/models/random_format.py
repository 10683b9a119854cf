"""``random:SHAPE``: seeded random weights of a named shape, made when asked for; for benchmarks and tests.

``random:tiny@7`` has seed 7. A tensor depends on the seed and its name alone. Values follow a normal distribution in bfloat16,
drawn by table: 65,536 quantiles, one for each 16 random bits, so that a tensor costs little more than its bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from hashlib import blake2b
from math import prod
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import UserError
from core.interfaces.model import Checkpoint, CheckpointFormat, Tensor
from core.suggest import did_you_mean

PREFIX = "random:"
SPREAD = 0.02  # standard deviation of linears and embeddings, as transformers initializes them
NORM_SPREAD = 0.1  # of norm weights, around 1
CHUNK = 1 << 20

COMMON = {"hidden_act": "silu", "dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def shape(
    architecture: str, layers: int, hidden: int, heads: int, kv_heads: int, head_dim: int, intermediate: int, vocab: int,
    positions: int, theta: float, tied: bool = True,
) -> dict[str, Any]:  # fmt: skip
    return COMMON | {
        "architectures": [architecture],
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": intermediate,
        "vocab_size": vocab,
        "max_position_embeddings": positions,
        "rope_theta": theta,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": tied,
    }


SHAPES: dict[str, dict[str, Any]] = {
    "ernie-4.5-0.3b": shape("Ernie4_5ForCausalLM", 18, 1024, 16, 2, 128, 3072, 103424, 131072, 500000.0),
    "smollm2-135m": shape("LlamaForCausalLM", 30, 576, 9, 3, 64, 1536, 49152, 8192, 100000.0),
    "tiny": shape("Ernie4_5ForCausalLM", 2, 64, 4, 2, 32, 128, 512, 2048, 500000.0),
    "llama-tiny": shape("LlamaForCausalLM", 2, 64, 4, 2, 16, 128, 512, 2048, 10000.0, tied=False),
}


class Random(CheckpointFormat):
    """Paths of this format are names: ``Path("random:tiny")``."""

    def recognizes(self, path: Path) -> bool:
        return path.name.startswith(PREFIX)

    def config(self, path: Path) -> Mapping[str, Any]:
        name, _ = parse(path.name)
        return dict(SHAPES[name])

    def open(self, path: Path) -> Checkpoint:
        name, seed = parse(path.name)
        return RandomCheckpoint(SHAPES[name], seed)


def parse(text: str) -> tuple[str, int]:
    """(shape, seed) of "random:SHAPE" or "random:SHAPE@SEED"."""
    name, _, seed = text.removeprefix(PREFIX).partition("@")
    if name not in SHAPES:
        raise UserError.of(
            f"there is no random shape {name!r}{did_you_mean(name, SHAPES)}",
            "model",
            f"choose one of {', '.join(PREFIX + known for known in SHAPES)}",
        )
    if seed and not seed.isdecimal():
        raise UserError.of(f"the seed of {text!r} must be a whole number, not {seed!r}", "model", f"--model {PREFIX}{name}@0")
    return name, int(seed or 0)


class RandomCheckpoint(Checkpoint):
    def __init__(self, config: Mapping[str, Any], seed: int) -> None:
        self.config = dict(config)
        self.seed = seed
        self._shapes = tensor_shapes(config)

    def names(self) -> frozenset[str]:
        return frozenset(self._shapes)

    def tensor(self, name: str) -> Tensor:
        import ml_dtypes

        wanted = self._shapes[name]
        table = quantiles(1.0, NORM_SPREAD) if name.endswith("norm.weight") else quantiles(0.0, SPREAD)
        key = int.from_bytes(blake2b(f"{self.seed}:{name}".encode(), digest_size=16).digest(), "little")
        bits = np.random.SFC64(key)
        values = np.empty(prod(wanted), np.uint16)
        for start in range(0, len(values), CHUNK):
            chunk = values[start : start + CHUNK]
            draws = bits.random_raw(-(-len(chunk) // 4)).astype("<u8", copy=False).view("<u2")
            np.take(table, draws[: len(chunk)], out=chunk)
        tensor: Tensor = values.view(ml_dtypes.bfloat16).reshape(wanted)
        return tensor


@cache
def quantiles(mean: float, spread: float) -> NDArray[np.uint16]:
    """65,536 equally likely values of a normal distribution, as the bits of bfloat16."""
    import ml_dtypes

    normal = NormalDist()
    half = np.array([normal.inv_cdf((index + 0.5) / 65536) for index in range(32768)])
    values = mean + spread * np.concatenate([half, -half[::-1]])
    return values.astype(ml_dtypes.bfloat16).view(np.uint16)


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes as transformers saves such a model."""
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    q, kv = (config[key] * config["head_dim"] for key in ("num_attention_heads", "num_key_value_heads"))
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        shapes |= {
            f"model.layers.{layer}.{name}.weight": wanted
            for name, wanted in {
                "input_layernorm": (hidden,),
                "self_attn.q_proj": (q, hidden),
                "self_attn.k_proj": (kv, hidden),
                "self_attn.v_proj": (kv, hidden),
                "self_attn.o_proj": (hidden, q),
                "post_attention_layernorm": (hidden,),
                "mlp.gate_proj": (inner, hidden),
                "mlp.up_proj": (inner, hidden),
                "mlp.down_proj": (hidden, inner),
            }.items()
        }
    return shapes
