"""Arithmetic of memory: what a model needs of a device, and what fits into a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping

from core.interfaces.compute import DTYPE_BYTES
from core.interfaces.model import LINEAR_ROLES, DecoderSpec, Role
from core.models.shard import Shard


class Memory:
    """One rank's part of a model in one number format. All in bytes, tokens and pages; estimates err on the large side."""

    def __init__(
        self,
        spec: DecoderSpec,
        dtype: str,
        bits: Mapping[Role, float],
        page_size: int,
        max_num_seqs: int,
        budget: int | None,
        ranks: int = 1,
        kv_head: int | None = None,
    ) -> None:
        """``spec`` is of the whole model; ``bits``: what a weight takes in each role that is packed; ``budget``: a rank's;
        ``kv_head``: what a head of a key or of a value takes, if not its numbers in ``dtype``.
        """
        element = DTYPE_BYTES[dtype]
        vocab, spec = spec.vocab, Shard(spec, 0, ranks).spec
        self.weights = spec.parameters * element
        for role in LINEAR_ROLES:
            if role in bits:
                parameters = math.prod(spec.shape(role)) * (1 if role == "head" else spec.num_layers)
                self.weights += math.ceil(parameters * bits[role] / 8)
                if role != "head" or not spec.tied_head:  # a tied head is packed beside the embedding, which stays
                    self.weights -= parameters * element
        self.page = spec.kv_bytes_per_token(element, kv_head) * page_size
        self.page_size = page_size
        self.budget = budget
        # Widest moment of a layer: residual, its copy, and the gate and up halves; logits are float32 and sampled out of place.
        self._token = element * (2 * spec.hidden + spec.q_width + 2 * spec.kv_width + 3 * spec.intermediate)
        self._rows = max_num_seqs * vocab * 4 * 3

    def activation(self, step_tokens: int) -> int:
        return step_tokens * self._token + self._rows

    def pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def one_request(self, tokens: int, step_tokens: int) -> int:
        return self.weights + self.activation(step_tokens) + self.pages_for(tokens) * self.page

    def fitting_pages(self, step_tokens: int, spared: int = 0) -> int:
        """``spared``: bytes of the budget that are not to be used."""
        if self.budget is None:
            return 1 << 40
        return max(0, (self.budget - spared - self.weights - self.activation(step_tokens)) // self.page)
