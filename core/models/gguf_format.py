"""GGUF files of the one decoder, as llama.cpp's tools write them, their metadata translated to config.json's terms."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError
from core.interfaces.model import Checkpoint, CheckpointFormat, Tensor
from core.models.gguf_file import GgufFile

ARCHITECTURES = ("llama", "ernie4_5")
"""Both rotate interleaved pairs, since a Llama's q and k rows were reordered for the file. So both are ERNIE-4.5s here."""
TRANSLATED = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
}
TOKENS = {"bos": "bos_token_id", "padding": "pad_token_id"}
ENDS = ("eos", "eot", "eom")  # end of text, of a turn, of a message: each ends a generation
LLAMA3_FACTORS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192.0}


class Gguf(CheckpointFormat):
    def recognizes(self, path: Path) -> bool:
        if path.is_dir():
            return next(path.glob("*.gguf"), None) is not None
        return path.suffix == ".gguf"

    def config(self, path: Path) -> Mapping[str, Any]:
        file = GgufFile(only_file(path))
        try:
            return translate(file)
        finally:
            file.close()

    def open(self, path: Path) -> Checkpoint:
        return GgufCheckpoint(GgufFile(only_file(path)))


class GgufCheckpoint(Checkpoint):
    def __init__(self, file: GgufFile) -> None:
        file.check()
        self._file = file
        self.config = translate(file)

    def names(self) -> frozenset[str]:
        return frozenset(self._file.tensors)

    def tensor(self, name: str) -> Tensor:
        return self._file.tensor(name)

    def release(self, name: str) -> None:
        self._file.release(name)

    def close(self) -> None:
        self._file.close()


def only_file(path: Path) -> Path:
    files = sorted(path.glob("*.gguf")) if path.is_dir() else [path]
    if len(files) != 1:
        raise UserError.of(
            f"{path} has {len(files)} GGUF files: {', '.join(file.name for file in files)}",
            "",
            f"name one of them: --model {files[0]}" if files else "fetch the file again",
        )
    return files[0]


def translate(file: GgufFile) -> dict[str, Any]:
    architecture = file.metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise UserError.of(
            f"{file.path} is a model of architecture {architecture!r}; as GGUF, only {' and '.join(ARCHITECTURES)} are known",
            "general.architecture in the file's metadata",
            "choose a file of one of these architectures",
        )
    if file.metadata.get("split.count", 0) > 1:
        raise UserError.of(
            f"{file.path} is one of {file.metadata['split.count']} parts of a split file",
            "split.count in the file's metadata",
            "merge the parts with llama.cpp's gguf-split --merge",
        )
    own = (key for key in file.metadata if not key.startswith("tokenizer.") or key.endswith("_token_id"))
    given = {key.removeprefix(f"{architecture}."): file.metadata[key] for key in own}
    config: dict[str, Any] = {ours: given[theirs] for theirs, ours in TRANSLATED.items() if theirs in given}
    config |= {
        ours: given[f"tokenizer.ggml.{theirs}_token_id"]
        for theirs, ours in TOKENS.items()
        if f"tokenizer.ggml.{theirs}_token_id" in given
    }
    ends = [given[key] for kind in ENDS if (key := f"tokenizer.ggml.{kind}_token_id") in given]
    config["eos_token_id"] = list(dict.fromkeys(ends))
    if "token_embd.weight" in file.tensors:
        config["vocab_size"] = file.tensors["token_embd.weight"].shape[0]
    config.setdefault("rope_theta", 10000.0)  # llama.cpp's, where the file says nothing
    config |= {
        "architectures": ["Ernie4_5ForCausalLM"],
        "model_type": "ernie4_5",
        "dtype": "bfloat16",
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "gguf_architecture": architecture,
    }
    if given.get("expert_count"):
        config["moe_num_experts"] = given["expert_count"]
    check_heads(file, given, config)
    scaling = rope_scaling(file, given)
    if scaling is not None:
        config["rope_scaling"] = scaling
    return config


def check_heads(file: GgufFile, given: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Heads have one width, and all of it is rotated."""
    heads = config.get("num_attention_heads")
    if isinstance(heads, list) or isinstance(config.get("num_key_value_heads"), list):
        raise UserError.of(f"the layers of {file.path} differ in their heads, but this decoder's are all alike")
    width = config.get("head_dim") or (config.get("hidden_size") or 0) // (heads or 1)
    for key in ("attention.value_length", "rope.dimension_count"):
        if given.get(key, width) != width:
            raise UserError.of(
                f"{file.path} has a {key} of {given[key]}, but this decoder only does that of its heads, {width}",
                f"{key} in the file's metadata",
                "choose another file",
            )


def rope_scaling(file: GgufFile, given: Mapping[str, Any]) -> dict[str, Any] | None:
    kind = given.get("rope.scaling.type", "none")
    if "rope_freqs.weight" in file.tensors:
        return llama3_scaling(file, given)
    if kind == "none":
        return None
    return {"rope_type": kind, "factor": given.get("rope.scaling.factor")}


def llama3_scaling(file: GgufFile, given: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF stores what each frequency is divided by. Llama 3's numbers are known but for the factor, which is the largest."""
    file.check()
    divisors = np.asarray(file.tensor("rope_freqs.weight"), np.float64)
    factor = float(divisors.max())
    wavelengths = 2 * np.pi * float(given.get("rope.freq_base", 10000.0)) ** (np.arange(len(divisors)) / len(divisors))
    low, high, positions = LLAMA3_FACTORS.values()
    smooth = np.clip((positions / wavelengths - low) / (high - low), 0.0, 1.0)
    expected = 1.0 / ((1.0 - smooth) / factor + smooth)
    if not np.allclose(divisors, expected, rtol=1e-4):
        raise UserError.of(
            f"{file.path} scales its rotary frequencies in a way that is not Llama 3's",
            "rope_freqs.weight",
            "choose a file of a model without that scaling",
        )
    return {"rope_type": "llama3", "factor": factor, **LLAMA3_FACTORS}
