"""What browsers are shown: files held in memory, under a policy that lets them load and ask nothing but this server."""

from __future__ import annotations

import hashlib
import mimetypes
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from core.errors import UserError

INDEX = "index.html"
_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml", ".woff2": "font/woff2"}
_TEXT = frozenset({"text/javascript", "text/css", "text/html"})
HEADERS = {
    "content-security-policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' data:",
            "font-src 'self'",
            "connect-src 'self'",
            "manifest-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types dompurify",
        )
    ),
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}
"""The policy of every file: no script, style, font, picture or answer from elsewhere, nothing inline, no frame around it."""


@dataclass(frozen=True)
class PageFile:
    body: bytes
    headers: Mapping[str, str]


def files_of(folder: Path) -> dict[str, PageFile]:
    """The folder's files by the path they are shown at; index.html is ``/``.

    :raises UserError: when there is no index.html.
    """
    found = {}
    for path in sorted(each for each in folder.rglob("*") if each.is_file() and not each.name.startswith(".")):
        name = path.relative_to(folder).as_posix()
        body = path.read_bytes()
        kind = _TYPES.get(path.suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
        headers = {
            **HEADERS,
            "content-type": f"{kind}; charset=utf-8" if kind in _TEXT else kind,
            "etag": f'"{hashlib.sha256(body).hexdigest()[:20]}"',
        }
        found["/" if name == INDEX else f"/{name}"] = PageFile(body, headers)
    if "/" not in found:
        raise UserError.of(f"the page in {folder} has no {INDEX}", "page", "--page none to serve without it")
    return found


def add_routes(app: FastAPI, files: Mapping[str, PageFile]) -> None:
    """:raises UserError: when a file has the path of a route: it would be shown to those without a key."""
    taken = sorted(_paths(app) & set(files))
    if taken:
        raise UserError.of(f"the page has a file at {taken[0]}, which is a route", "page", "--page none to serve without it")

    async def show(request: Request) -> Response:
        file = files[request.url.path]
        if request.headers.get("if-none-match") == file.headers["etag"]:
            return Response(status_code=304, headers=dict(file.headers))
        return Response(file.body, headers=dict(file.headers))

    for path in files:
        app.add_route(path, show, methods=["GET", "HEAD"], include_in_schema=False)


def _paths(app: FastAPI) -> set[str]:
    routes: Iterable[object] = app.routes
    return {str(getattr(route, "path", "")) for route in routes}
