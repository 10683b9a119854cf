"""HTTP as it comes over the wire: uvicorn's, with OpenAI's error body also for what is no request at all."""

from __future__ import annotations

import logging
import sys
from typing import Any

import h11
import msgspec
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from frontends.openai_http.errors import error_body

log = logging.getLogger("dovetail.http")
LONGEST_HEAD = 16 << 10  # bytes
NO_WEBSOCKET = "this server speaks no WebSocket: what it streams are server-sent events, by POST"


class _Connection(h11.Connection):
    """h11 looks how long a head is while it is incomplete; this one does also where all of it has come at once."""

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            size = len(event.target) + sum(len(name) + len(value) for name, value in event.headers)
            if size > LONGEST_HEAD:
                raise h11.RemoteProtocolError(f"its head is longer than {LONGEST_HEAD} bytes", error_status_hint=431)
        return event


class HttpProtocol(H11Protocol):
    """Requests that cannot be read, and such that ask for another protocol, end the connection with a status and its reason.

    Named and not left to uvicorn, which takes another parser where one is installed: that one has no limit for headers.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = _Connection(h11.SERVER, LONGEST_HEAD)

    def send_400_response(self, msg: str) -> None:
        error = sys.exception()  # uvicorn calls this where it has caught one
        reason = str(error or msg).partition(":")[0]  # behind a colon stands what was sent
        status = getattr(error, "error_status_hint", 400)
        self._refuse(status, f"this is no HTTP request that can be read: {reason[:1].lower()}{reason[1:]}")

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        log.debug("a WebSocket was asked for at %r", event.target[:200])
        self._refuse(400, NO_WEBSOCKET)

    def _should_upgrade(self) -> bool:
        """Other protocols than WebSocket are offers that a server may pass over: HTTP/2 of curl, for one."""
        return self._get_upgrade() == b"websocket"

    def _refuse(self, status: int, message: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else an answer is on its way, and is cut
            body = msgspec.json.encode(error_body(status, message))
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
                (b"connection", b"close"),
            ]
            response = h11.Response(status_code=status, headers=headers, reason=STATUS_PHRASES[status])
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
