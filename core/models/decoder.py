"""The one decoder: pre-norm, grouped-query attention, SwiGLU. It composes a backend's operations and holds placed weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from core.interfaces.compute import Array, ComputeBackend, KVCache, Layer, Linear
from core.interfaces.model import DecoderSpec, Weight, WeightName
from core.interfaces.quantizer import Quantizer


class Decoder:
    """``placed`` has every name of ``weight_names(spec)``."""

    def __init__(self, spec: DecoderSpec, backend: ComputeBackend, placed: dict[WeightName, Any]) -> None:
        self.spec = spec
        self.backend = backend
        self.embedding: Array = placed[WeightName("embed")]
        self.head: Linear = placed[WeightName("head")]
        self.final_norm: Array = placed[WeightName("norm", None, "final")]
        self.layers = tuple(
            Layer(
                input_norm=placed[WeightName("norm", index, "input")],
                qkv=placed[WeightName("qkv", index)],
                o=placed[WeightName("o", index)],
                post_norm=placed[WeightName("norm", index, "post")],
                gate_up=placed[WeightName("gate_up", index)],
                down=placed[WeightName("down", index)],
            )
            for index in range(spec.num_layers)
        )

    @classmethod
    def load(
        cls, spec: DecoderSpec, weights: Iterable[Weight], backend: ComputeBackend, quantizer: Quantizer | None = None
    ) -> Decoder:
        """Place weights one at a time as they stream in."""
        return cls(spec, backend, {weight.name: backend.place(weight, spec, quantizer) for weight in weights})

    def forward(self, step: Any, kv: KVCache, head: Linear | None = None) -> Array:
        """One step: float32 logits [R, V] of the rows that are sampled. ``head``: another than the model's own."""
        backend = self.backend
        hidden = backend.embed(self.embedding, step)
        hidden = backend.layers(hidden, self.layers, kv, step)
        return backend.logits(hidden, self.final_norm, head or self.head, step)

    def no_head(self) -> Linear:
        """One that gives the hidden states as they are: with it ``forward`` ends behind the final norm."""
        width = self.spec.hidden
        same = Weight(WeightName("head"), (np.eye(width, dtype=np.float32),))
        return self.backend.place(same, replace(self.spec, vocab=width, tied_head=False), None)

    @property
    def linears(self) -> tuple[Linear, ...]:
        in_layers = (linear for layer in self.layers for linear in (layer.qkv, layer.o, layer.gate_up, layer.down))
        return (*in_layers, self.head)
