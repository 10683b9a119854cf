"""Reading config.json: typed keys with errors that name the key, and what decoder families have in common."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from core.errors import UserError
from core.interfaces.model import DecoderSpec, RopeStyle

LARGEST = sys.float_info.max
ROPE_NUMBERS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def refuse(config: Mapping[str, Any], key: str, can: str) -> UserError:
    return UserError.of(
        f"the model's {key} is {config[key]!r}, but this decoder only does {can}",
        f"{key} in the model's config",
        "choose a checkpoint of a family that is listed by --list-plugins",
    )


def whole(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A positive whole number. A key that is absent or null takes the default; without one it is an error."""
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise UserError.of(f"the model's config has no {key}", f"{key} in the model's config", "fetch the checkpoint again")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= LARGEST or value != int(value):
        raise UserError.of(f"the model's {key} must be a positive whole number, not {value!r}", f"{key} in the model's config")
    return int(value)


def number(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A number above 0."""
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise UserError.of(f"the model's config has no {key}", f"{key} in the model's config", "fetch the checkpoint again")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= LARGEST:
        raise UserError.of(f"the model's {key} must be a number above 0, not {value!r}", f"{key} in the model's config")
    return float(value)


def require(config: Mapping[str, Any], accepted: Mapping[str, tuple[tuple[Any, ...], str]]) -> None:
    """Refuse keys that ask for something else. ``accepted``: key -> (values it may have, what the decoder does instead)."""
    for key, (values, can) in accepted.items():
        if config.get(key) is not None and config[key] not in values:
            raise refuse(config, key, can)


def head_dim(config: Mapping[str, Any]) -> int:
    heads, kv_heads = whole(config, "num_attention_heads"), kv_head_count(config)
    if heads % kv_heads:
        raise UserError.of(
            f"the model's num_attention_heads {heads} is not a multiple of its num_key_value_heads {kv_heads}",
            "num_key_value_heads in the model's config",
        )
    hidden = whole(config, "hidden_size")
    if config.get("head_dim") is None and hidden % heads:
        raise UserError.of(
            f"the model's hidden_size {hidden} is not a multiple of its num_attention_heads {heads}",
            "hidden_size in the model's config",
        )
    width = whole(config, "head_dim", hidden // heads or None)
    if width % 2:
        raise UserError.of(
            f"the model's head_dim {width} is odd: rotary pairs need an even one", "head_dim in the model's config"
        )
    return width


def kv_head_count(config: Mapping[str, Any]) -> int:
    return whole(config, "num_key_value_heads", whole(config, "num_attention_heads"))


def rope(config: Mapping[str, Any], theta: float) -> tuple[float, dict[str, Any] | None]:
    """(theta, scaling): from ``rope_parameters`` as transformers 5 writes it, or from ``rope_theta`` and ``rope_scaling``.

    Scaling is None, or a mapping with a known "rope_type" and that type's numbers.
    """
    newer = config.get("rope_parameters")
    key = "rope_parameters" if newer else "rope_scaling"
    given = config.get(key) or {}
    if not isinstance(given, Mapping):
        raise UserError.of(f"the model's {key} must be a table, not {given!r}", f"{key} in the model's config")
    if given.get("rope_theta") is not None:
        theta = number(given, "rope_theta")
    else:
        theta = number(config, "rope_theta", theta)
    for table in (config, given):
        require(table, {"partial_rotary_factor": ((1, 1.0), "rotary embedding of whole heads")})
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind == "default":
        return theta, None
    if kind not in ROPE_NUMBERS:
        raise UserError.of(
            f"the model's rope type is {kind!r}, but this decoder only does default, {' and '.join(ROPE_NUMBERS)}",
            f"{key} in the model's config",
            "choose a checkpoint without that scaling",
        )
    # files of some ages keep original_max_position_embeddings one level up
    return theta, {"rope_type": kind, **{name: number(given, name, config.get(name)) for name in ROPE_NUMBERS[kind]}}


def token_ids(config: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """The ids under a key that may hold nothing, one id or a list, here and in ``generation_config``; each once."""
    found: list[int] = []
    for table in (config, config.get("generation_config") or {}):
        value = table.get(key)
        for entry in value if isinstance(value, list | tuple) else [value]:
            if entry is None:
                continue
            if isinstance(entry, bool) or not isinstance(entry, int):
                raise UserError.of(f"the model's {key} must be token ids, not {value!r}", f"{key} in the model's config")
            found.append(entry)
    return tuple(dict.fromkeys(found))


def token_id(config: Mapping[str, Any], key: str) -> int | None:
    return next(iter(token_ids(config, key)), None)


def decoder_spec(
    config: Mapping[str, Any],
    *,
    rope_style: RopeStyle,
    rope_theta: float,
    norm_eps: float,
    tied_head: bool,
    max_positions: int | None = None,
) -> DecoderSpec:
    """The spec a config describes; the keyword arguments but ``rope_style`` are the family's defaults."""
    theta, scaling = rope(config, rope_theta)
    tied = config.get("tie_word_embeddings")
    return DecoderSpec(
        num_layers=whole(config, "num_hidden_layers"),
        hidden=whole(config, "hidden_size"),
        num_heads=whole(config, "num_attention_heads"),
        num_kv_heads=kv_head_count(config),
        head_dim=head_dim(config),
        intermediate=whole(config, "intermediate_size"),
        vocab=whole(config, "vocab_size"),
        max_positions=whole(config, "max_position_embeddings", max_positions),
        rope_theta=theta,
        rope_style=rope_style,
        norm_eps=number(config, "rms_norm_eps", norm_eps),
        tied_head=tied_head if tied is None else bool(tied),
        rope_scaling=scaling,
        eos_token_ids=token_ids(config, "eos_token_id"),
        bos_token_id=token_id(config, "bos_token_id"),
        pad_token_id=token_id(config, "pad_token_id"),
    )
