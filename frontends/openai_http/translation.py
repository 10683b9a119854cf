"""From another route's request to the chat it stands for, with mistakes told in that route's own words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from core.errors import RequestError
from frontends.openai_http.errors import MalformedError, invalid
from frontends.openai_http.schema import ChatBody

REJECTED = "this model takes text only"
_CHATS_OWN = (("n", 1), ("prompt_logprobs", None), ("return_token_ids", False))
"""Fields for which other routes' answers have no place, and what asks for nothing."""


def chat_of(fields: Mapping[str, Any], extra: Mapping[str, Any] | None, names: Mapping[str, str]) -> ChatBody:
    """``extra`` are the fields that the route does not know: what a chat makes of them holds here too.

    ``names`` is how the route calls a chat's fields.

    :raises RequestError: for what a chat does not take.
    """
    known = dict(extra or {})
    for name, harmless in _CHATS_OWN:
        if known.pop(name, None) not in (None, harmless):
            message = f"{name} is not supported by this route: /v1/chat/completions has it"
            raise RequestError(message, param=name, code="unsupported_parameter")
    given = {**known, **{name: value for name, value in fields.items() if value is not None}}
    try:
        return ChatBody.model_validate(given)
    except ValidationError as error:
        wrong = invalid(error)
        if wrong.param is None:
            raise wrong from None
        field = wrong.param.split(".")[0].split("[")[0]
        name = names.get(field, field)
        if name == field:
            raise wrong from None
        raise MalformedError(wrong.message.replace(field, name, 1), param=name, code=wrong.code) from None
