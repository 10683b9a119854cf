"""What a task reads of the requests it has submitted."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from itertools import chain
from typing import Protocol

from core.engine import wire
from core.errors import RequestError
from core.interfaces.request import TokenEvent

MOST_UNREAD = 1 << 17
"""What may wait for one reader: tokens, and the alternatives told with them."""


class Life(Protocol):
    """The engine from one start to its end, as those have it who ask it."""

    def send(self, message: wire.ToEngine) -> bool:
        """False when nobody is there to take it. Never blocks."""
        ...


class TokenStream:
    """What the requests of one ``submit`` gain, as (number of the request, event). Belongs to the event loop.

    A reader that comes late finds one event of a request for all that it gained meanwhile: the busier the loop, the more tokens
    go one way together, and the less each of them costs. So a reader that is quick waits for a ``pause`` of seconds between two
    events, as long as something is still running; the first, and the last, come at once. The engine does not wait for a reader.
    One who leaves more than ``MOST_UNREAD`` is told so behind what it has, and its requests end.
    """

    def __init__(
        self,
        life: Life,
        wire_ids: list[str],
        forget: Callable[[list[str]], None],
        pause: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.life = life
        self._pause = pause
        self._read_at = -math.inf  # by the loop's clock
        self._due = False  # whether a pause is waited for
        self._ids = wire_ids
        self._forget = forget  # what the client does with the ids of requests that nobody wants any more
        self._open = set(range(len(wire_ids)))
        self._dropped: set[int] = set()
        self._gained: dict[int, list[TokenEvent]] = {}  # and not been read, by number
        self._failure: Exception | None = None  # told when all that came before has been read
        self._closed = False
        self._news = asyncio.Event()
        self._unread = 0

    def __aiter__(self) -> TokenStream:
        return self

    async def __anext__(self) -> tuple[int, TokenEvent]:
        while True:
            while self._gained:
                number = next(iter(self._gained))
                event = _joined(self._gained.pop(number))
                self._unread -= _weight(event)
                if number not in self._dropped:
                    self._read_at = asyncio.get_running_loop().time()
                    return number, event
            if self._failure is not None:
                failure, self._failure, self._closed = self._failure, None, True
                raise failure
            if self._closed or not self._open:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()

    def drop(self, number: int) -> None:
        """End one request at the engine; nothing more of it is heard here."""
        self._dropped.add(number)
        if number in self._open:
            self._open.discard(number)
            self._forget([self._ids[number]])

    def abort(self) -> None:
        """End what still runs; each of it gets a last event with ``finish_reason`` "abort"."""
        for number in sorted(self._open):
            self._gain(number, TokenEvent(self._ids[number], [], "abort"))
        self._end()

    def close(self) -> None:
        """End what still runs; whoever still reads gets nothing more."""
        self._end()
        self._closed = True
        self._news.set()

    def _end(self) -> None:
        if self._open:
            self._forget([self._ids[number] for number in self._open])
            self._open.clear()

    def put(self, number: int, event: TokenEvent) -> None:
        if event.finish_reason is not None:
            self._open.discard(number)
        self._gain(number, event)
        if self._unread > MOST_UNREAD and event.finish_reason is None:
            self._end()
            self._fail(RequestError("the client reads too slowly: its requests were ended", code="slow_client", status=408))

    def refuse(self, number: int, error: Exception) -> None:
        """The engine does not run one of them after all; then none of them."""
        if number in self._open:
            self._open.discard(number)
            self._end()
            self._fail(error)

    def fail(self, error: Exception) -> None:
        self._open.clear()
        self._fail(error)

    def _gain(self, number: int, event: TokenEvent) -> None:
        self._gained.setdefault(number, []).append(event)
        self._unread += _weight(event)
        if not self._open:
            self._news.set()
        elif not self._due:
            self._tell_in_time()

    def _tell_in_time(self) -> None:
        """Whoever waits is woken once, and not before a pause is over."""
        loop = asyncio.get_running_loop()
        due = self._read_at + self._pause()
        if due <= loop.time():
            self._news.set()
        else:
            self._due = True
            loop.call_at(due, self._tell)

    def _tell(self) -> None:
        self._due = False
        self._news.set()

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        self._news.set()


def _joined(events: list[TokenEvent]) -> TokenEvent:
    """What a request gained, as one event."""
    last = events[-1]
    if len(events) == 1:
        return last
    lists = [event.logprobs for event in events if event.logprobs is not None]
    return TokenEvent(
        last.request_id,
        list(chain.from_iterable(event.token_ids for event in events)),
        last.finish_reason,
        last.stop_token,
        list(chain.from_iterable(lists)) if lists else None,
        max(event.num_cached_tokens for event in events),
        last.error,
    )


def _weight(event: TokenEvent) -> int:
    tokens = len(event.token_ids)
    return tokens if event.logprobs is None else tokens + sum(len(each.top_ids) for each in event.logprobs)
