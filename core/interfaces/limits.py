"""What a request must keep to. One function, called by every door before it waits and by the engine before it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.errors import RequestError
from core.interfaces.request import SamplingParams


@dataclass(frozen=True)
class RequestLimits:
    """``capacity``: tokens that all KV pages together hold; a request longer than that could never run.

    ``at_once``: continuations that can run and wait together; a call that asks for more would be refused for ever.
    """

    max_model_len: int
    vocab: int
    capacity: int | None = None
    at_once: int | None = None

    @property
    def context(self) -> int:
        """The longest prompt plus output."""
        return self.max_model_len if self.capacity is None else min(self.max_model_len, self.capacity)

    def check(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> None:
        """:raises RequestError: naming the first limit that is passed."""
        if not prompt_token_ids:
            raise RequestError("the prompt is empty: give at least one token", param="prompt")
        if len(prompt_token_ids) >= self.context:
            raise RequestError(
                f"the prompt has {len(prompt_token_ids)} tokens; at most {self.context - 1} fit, "
                f"since the context is {self.context} tokens and one of them must be generated",
                param="prompt",
                code="context_length_exceeded",
            )
        # Three passes at C speed: a long prompt is checked on the front end's event loop, and again in the engine.
        if set(map(type, prompt_token_ids)) != {int} or min(prompt_token_ids) < 0 or max(prompt_token_ids) >= self.vocab:
            wrong = next(token for token in prompt_token_ids if type(token) is not int or not 0 <= token < self.vocab)
            raise RequestError(self._unknown(wrong), param="prompt")
        left = self.context - len(prompt_token_ids)
        for field, asked in (("max_tokens", params.max_tokens or 0), ("min_tokens", params.min_tokens)):
            if asked > left:
                raise RequestError(
                    f"the prompt has {len(prompt_token_ids)} tokens and {field} asks for {asked} more; the context is "
                    f"{self.context} tokens: shorten the prompt, or ask for at most {left}",
                    param=field,
                    code="context_length_exceeded",
                )
        if params.logprobs is not None and params.logprobs > self.vocab:
            raise RequestError(f"logprobs must be at most {self.vocab}, got {params.logprobs}", param="logprobs")
        for token in params.stop_token_ids:
            if token >= self.vocab:
                raise RequestError(self._unknown(token), param="stop_token_ids")
        for word in params.bad_words:
            if max(word) >= self.vocab:
                raise RequestError(self._unknown(max(word)), param="bad_words")
        if len({word[0] for word in params.bad_words if len(word) == 1}) >= self.vocab:
            raise RequestError("bad_words leaves no token to say", param="bad_words")
        for token in params.logit_bias:
            if token >= self.vocab:
                raise RequestError(self._unknown(token), param="logit_bias")

    def _unknown(self, token: object) -> str:
        return f"{token!r} is not a token id of this model: ids are whole numbers in [0, {self.vocab})"
