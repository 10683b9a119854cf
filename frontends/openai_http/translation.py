"""From another route's request to the chat it stands for, with mistakes told in that route's own words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from core.errors import RequestError
from frontends.openai_http.errors import invalid
from frontends.openai_http.schema import ChatBody

REJECTED = "this model takes text only"


def chat_of(fields: Mapping[str, Any], extra: Mapping[str, Any] | None, names: Mapping[str, str]) -> ChatBody:
    """``extra`` are the fields that the route does not know: what a chat makes of them holds here too.

    ``names`` is how the route calls a chat's fields.

    :raises RequestError: for what a chat does not take.
    """
    known = {name: value for name, value in (extra or {}).items() if name != "n"}  # there is one answer
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
        raise RequestError(wrong.message.replace(field, name, 1), param=name, code=wrong.code) from None
