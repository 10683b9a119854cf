"""Who may ask: keys that requests show, as ``Authorization: Bearer KEY`` or ``X-Api-Key: KEY``."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from core.errors import UserError, forbidden
from frontends.openai_http.current import asker, operator
from frontends.openai_http.errors import error_body, refusal
from frontends.openai_http.settings import HttpSettings

log = logging.getLogger("dovetail.http")
OPEN = frozenset({"/health", "/ping", "/ready", "/metrics", "/version"})
"""What load balancers and monitors ask for, who have no key."""


class Keys:
    """Names of keys by their digests. Of a key nothing else is kept."""

    def __init__(self, named: Iterable[tuple[str, str]]) -> None:
        self._names = [(_digest(key), name) for name, key in named]

    def __len__(self) -> int:
        return len(self._names)

    def owner(self, key: str) -> str | None:
        """The name of this key, or None. Takes as long for a wrong key as for a right one."""
        shown, found = _digest(key), None
        for digest, name in self._names:
            if hmac.compare_digest(shown, digest):
                found = name
        return found


def keys_of(section: HttpSettings) -> Keys:
    """``NAME=KEY`` or ``KEY``, from the settings and from the lines of the file.

    :raises UserError: for an empty key, and when the file cannot be read or has no key.
    """
    entries = [secret.get_secret_value() for secret in section.api_key]
    if not all(entry.strip() for entry in entries):
        raise UserError.of(
            "no API key in --api-key: it is empty",
            "openai_http.api_key",
            "--api-key KEY; if a shell variable has the key, see that it is set",
            "leave --api-key out if everybody may ask",
        )
    if section.api_key_file is not None:
        entries += _lines(Path(section.api_key_file))
    return Keys(_named(number, entry) for number, entry in enumerate(entries, 1))


def operators_of(section: HttpSettings) -> Keys:
    """:raises UserError: for an empty key."""
    entries = [secret.get_secret_value() for secret in section.operator_key]
    if not all(entry.strip() for entry in entries):
        raise UserError.of(
            "an operator's key is empty",
            "openai_http.operator_key",
            "--openai-http-operator-key KEY; if a shell variable has the key, see that it is set",
            "leave it out if nobody is to pause this server",
        )
    named = (_named(number, entry) for number, entry in enumerate(entries, 1))
    return Keys((f"operator {name.removeprefix('key ')}", key) for name, key in named)


class Guard:
    """Lets in who shows a key, or asks for what is open to all."""

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys,
        operators: Keys,
        open_paths: Set[str] = OPEN,
        refused: Mapping[str, Any] | None = None,
    ) -> None:
        """:param keys: without any, everybody is let in, and an operator is who shows an operator's.
        :param refused: what is told to who shows none, instead of why.
        """
        self._app = app
        self._operators = operators
        self._refused = refused
        self._keys = keys
        self._open = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._open:
            await self._app(scope, receive, send)
            return
        key = _shown(Headers(scope=scope))
        owner = self._keys.owner(key) if key else None
        if key and (named := self._operators.owner(key)) is not None:
            owner = named
            operator.set(True)
        elif not len(self._keys):
            await self._app(scope, receive, send)
            return
        if owner is not None:
            asker.set(owner)
            log.debug("%s %s by %s", scope["method"], scope["path"], owner)
            await self._app(scope, receive, send)
            return
        message = (
            "the API key is not one of this server's"
            if key
            else "this server wants an API key: send it as 'Authorization: Bearer KEY'"
        )
        body = error_body(401, message, code="invalid_api_key")
        answer = refusal(scope["path"], 401, self._refused or body, {"www-authenticate": "Bearer"})
        await answer(scope, receive, send)


def _shown(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.casefold() == "bearer" else headers.get("x-api-key", "").strip()


def _named(number: int, entry: str) -> tuple[str, str]:
    name, equals, key = entry.partition("=")
    return (name, key) if equals and key and name.isidentifier() else (f"key {number}", entry)


def _lines(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except PermissionError as error:
        raise forbidden(error) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError.of(
            f"the file of API keys cannot be read: {error}", "openai_http.api_key_file", "one key a line"
        ) from error
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise UserError.of(f"{file} has no API key", "openai_http.api_key_file", "one key a line, or NAME=KEY")
    return keys


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
