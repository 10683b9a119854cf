"""``--compat fastdeploy``: to count, stop and refuse as that server does, for clients that depend on it. Off by default.

Tokens and stops. An answer of ``max_tokens`` N has N - 1 tokens of text, and one that is not seen: there, that token is
overwritten by the end of the text. N tokens are counted, and the finish reason is "length" even if the model would have ended
just there. A stop string stays in the text, and one token more than it is counted. With ``include_stop_str_in_output`` the
text ends with the end token's own text.

Statuses. A body of the wrong shape is 400; whatever else is refused is 500, a wrong model and a long prompt included. 429 has
a ``detail`` instead of an ``error``, 401 the one word "Unauthorized". /health is 404 while nothing is taken, and 304 when the
engine is gone. The model "default" is whichever is served.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from core.errors import RequestError
from core.interfaces.frontend import Service, TextDelta
from core.interfaces.request import SamplingParams
from frontends.openai_http.errors import MalformedError, describe, error_body

NAME = "fastdeploy"
ANY_MODEL = "default"
UNAUTHORIZED: Mapping[str, Any] = {"error": "Unauthorized"}


async def generate(
    service: Service, prompt: Sequence[int], params: SamplingParams, *, request_id: str, priority: int, cache_salt: str
) -> AsyncGenerator[TextDelta, None]:
    most = service.card.max_model_len - len(prompt) if params.max_tokens is None else params.max_tokens
    shown = max(1, most - 1)
    asked = msgspec.structs.replace(
        params, max_tokens=shown, min_tokens=min(params.min_tokens, shown), include_stop_str_in_output=True
    )
    source = service.generate(prompt, asked, request_id=request_id, priority=priority, cache_salt=cache_salt)
    try:
        async for delta in source:
            yield _as_there(service, delta, params, most)
    finally:
        if isinstance(source, AsyncGenerator):
            await source.aclose()


def _as_there(service: Service, delta: TextDelta, params: SamplingParams, most: int) -> TextDelta:
    if most == 1:
        delta = replace(delta, text="", logprobs=None)
    if delta.finish_reason not in ("stop", "length"):
        return delta
    end = service.tokenizer.eos_token_ids[0]
    ids, count = delta.token_ids, delta.num_generated_tokens
    overwritten = delta.finish_reason == "length" or isinstance(delta.stop_reason, str)
    if overwritten and count < most:
        ids, count = (*ids, end), count + 1
    text = delta.text + service.tokenizer.token_text(end) * params.include_stop_str_in_output
    finish = "length" if count == most else delta.finish_reason
    return replace(delta, text=text, token_ids=ids, num_generated_tokens=count, finish_reason=finish)


def refusal_of(error: Exception, max_concurrency: int) -> tuple[int, Mapping[str, Any]]:
    """The status and body that tell of ``error`` there."""
    status, body = describe(error)
    told = body["error"]
    if status == 400 and isinstance(error, MalformedError):
        return status, body
    if status == 429 and told["code"] != "timeout":
        return status, {"detail": f"Too many requests,current max concurrency is {max_concurrency}"}
    kind = "timeout_error" if told["code"] == "timeout" else told["type"]
    code = "model_not_support" if isinstance(error, RequestError) and status == 404 else told["code"]
    return 500, {"error": {**error_body(500, told["message"], param=told["param"], code=code)["error"], "type": kind}}
