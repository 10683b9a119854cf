"""What a task reads of the requests it has submitted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from core.engine.process import EngineProcess
from core.errors import RequestError
from core.interfaces.request import TokenEvent

MOST_UNREAD = 1 << 17
"""What may wait for one reader: tokens, and the alternatives told with them."""


class TokenStream:
    """What the requests of one ``submit`` gain, as (number of the request, event). Belongs to the event loop.

    The engine does not wait for a reader. One who leaves more than ``MOST_UNREAD`` is told so behind what it has, and its
    requests end.
    """

    def __init__(self, life: EngineProcess, wire_ids: list[str], forget: Callable[[list[str]], None]) -> None:
        self.life = life
        self._ids = wire_ids
        self._forget = forget  # what the client does with the ids of requests that nobody wants any more
        self._open = set(range(len(wire_ids)))
        self._dropped: set[int] = set()
        self._queue: asyncio.Queue[tuple[int, TokenEvent] | Exception | None] = asyncio.Queue()
        self._unread = 0

    def __aiter__(self) -> TokenStream:
        return self

    async def __anext__(self) -> tuple[int, TokenEvent]:
        while self._open or not self._queue.empty():
            item = await self._queue.get()
            if item is None:
                break
            if isinstance(item, Exception):
                raise item
            self._unread -= _weight(item[1])
            if item[0] not in self._dropped:
                return item
        raise StopAsyncIteration

    def drop(self, number: int) -> None:
        """End one request at the engine; nothing more of it is heard here."""
        self._dropped.add(number)
        if number in self._open:
            self._open.discard(number)
            self._forget([self._ids[number]])

    def abort(self) -> None:
        """End what still runs; each of it gets a last event with ``finish_reason`` "abort"."""
        for number in sorted(self._open):
            self._queue.put_nowait((number, TokenEvent(self._ids[number], [], "abort")))
        self._end()

    def close(self) -> None:
        """End what still runs; whoever still reads gets nothing more."""
        self._end()
        self._queue.put_nowait(None)

    def _end(self) -> None:
        if self._open:
            self._forget([self._ids[number] for number in self._open])
            self._open.clear()

    def put(self, number: int, event: TokenEvent) -> None:
        if event.finish_reason is not None:
            self._open.discard(number)
        self._queue.put_nowait((number, event))
        self._unread += _weight(event)
        if self._unread > MOST_UNREAD and event.finish_reason is None:
            self._end()
            self._queue.put_nowait(
                RequestError("the client reads too slowly: its requests were ended", code="slow_client", status=408)
            )

    def refuse(self, number: int, error: Exception) -> None:
        """The engine does not run one of them after all; then none of them."""
        if number in self._open:
            self._open.discard(number)
            self._end()
            self._queue.put_nowait(error)

    def fail(self, error: Exception) -> None:
        self._open.clear()
        self._queue.put_nowait(error)


def _weight(event: TokenEvent) -> int:
    return len(event.token_ids) + sum(len(each.top_ids) for each in event.logprobs or ())
