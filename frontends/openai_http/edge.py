"""What every answer passes on its way out: it is counted, named, and logged where that is asked for."""

from __future__ import annotations

import logging
import re
from time import perf_counter
from uuid import uuid4

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from frontends.openai_http import errors
from frontends.openai_http.current import asker, request_id
from frontends.openai_http.metrics import Metrics

log = logging.getLogger("dovetail.http")
REQUEST_ID = "x-request-id"
_FIT = re.compile(r"[!-~]{1,128}")
_SHOWN_PATH = 200  # characters


def named(record: logging.LogRecord) -> bool:
    """A log's filter that drops nothing: records of a request carry its id."""
    if (current := request_id.get()) and not hasattr(record, "request_id"):
        record.request_id = current
    return True


class Edge:
    """Counts answers by route and status; a client that left before its answer began counts as 499.

    Every answer has an ``x-request-id``: the one that the request came with, or that of its generation call, or a new one.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, *, access_log: bool = False) -> None:
        self._app = app
        self._metrics = metrics
        self._access_log = access_log
        log.addFilter(named)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = perf_counter()
        status = errors.CLIENT_GONE
        given = _given(scope)
        shown = given or uuid4().hex
        request_id.set(shown)

        async def noting(message: Message) -> None:
            nonlocal status, shown
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                if given is None:
                    shown = headers.setdefault(REQUEST_ID, shown)
                else:
                    headers[REQUEST_ID] = given
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception:
            status = 500  # what is sent for it, further out
            raise
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            self._metrics.requests.labels(route, str(status)).inc()
            if self._access_log:
                self._tell(scope, status, perf_counter() - began, shown)

    def _tell(self, scope: Scope, status: int, seconds: float, shown: str) -> None:
        client = scope.get("client")
        path = scope["path"][:_SHOWN_PATH].encode("unicode_escape").decode()  # a line stays one line
        fields = {
            "request_id": shown,
            "method": scope["method"],
            "path": path,
            "status": status,
            "seconds": round(seconds, 6),
            "client": client[0] if client else "",
            "key": asker.get(),
        }
        log.info("%s %s %d in %.1f ms, %s", scope["method"], path, status, seconds * 1e3, shown, extra=fields)


def _given(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text = value.decode("latin-1")
            return text if _FIT.fullmatch(text) else None
    return None
