"""The request that is being answered, for whoever works on it: its id, and who sent it."""

from __future__ import annotations

from contextvars import ContextVar

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""As in the answer's ``x-request-id``, unless the answer is a generation call's and the client brought none."""

operator: ContextVar[bool] = ContextVar("operator", default=False)
"""Whether the key that was shown is an operator's."""

asker: ContextVar[str] = ContextVar("asker", default="")
"""The name of the key that was shown, or where rates are limited without keys, the client's address."""
