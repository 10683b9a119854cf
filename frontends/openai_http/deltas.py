"""The deltas of one HTTP call: those of all its prompts, in batches of whatever has become ready since the last look.

A client that reads slowly, or an engine that is quick, thus costs one write for several tokens. What nobody reads is not made
into deltas, and a call with much to read lets the others have their turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from itertools import chain
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from core.interfaces.frontend import TextDelta
from core.interfaces.request import SamplingParams

Numbered = tuple[int, TextDelta]  # the prompt's place in the call, and what it gained
Result = TypeVar("Result")
MOST_UNREAD = 256  # tokens of a call that are ready while nobody reads them
TURN = 16  # deltas that a call takes before the others have their turn: a source with much to give never waits by itself


class Deltas:
    """``batch()`` until it gives nothing. ``close()`` in every case: it aborts what still runs."""

    def __init__(self, sources: Sequence[AsyncIterator[TextDelta]], *, least: int = 1) -> None:
        """:param least: tokens that a batch has, unless it is the last."""
        self._least = least
        self._most = max(least, MOST_UNREAD)
        self._handed_out = 0  # tokens
        self._ready: list[Numbered] = []
        self._error: Exception | None = None
        self._running = len(sources)
        self.num_tokens = 0  # generated so far
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._pumps = [asyncio.create_task(self._pump(number, source)) for number, source in enumerate(sources)]

    async def batch(self) -> list[Numbered]:
        """What is ready, one delta a choice; empty at the end.

        :raises RequestError, EngineDeadError: what a source raised, after everything before it has been handed out.
        """
        while not self._ready or self.num_tokens - self._handed_out < self._least:
            if self._ready and (self._error is not None or not self._running):
                break
            if self._error is not None:
                raise self._error
            if not self._running:
                return []
            self._wake.clear()
            await self._wake.wait()
        ready, self._ready = self._ready, []
        self._handed_out = self.num_tokens
        self._room.set()
        return ready if len(ready) == 1 else _coalesced(ready)

    def fail(self, error: Exception) -> None:
        """End the call with ``error``, after what is ready; what still runs is aborted."""
        if self._error is None:
            self._error = error
        self._wake.set()
        for pump in self._pumps:
            if pump is not asyncio.current_task():
                pump.cancel()

    async def close(self) -> None:
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _pump(self, number: int, source: AsyncIterator[TextDelta]) -> None:
        try:
            async for delta in source:
                self._ready.append((number, delta))
                self.num_tokens += len(delta.token_ids)
                self._wake.set()
                if len(self._ready) % TURN == 0:
                    await asyncio.sleep(0)
                while self.num_tokens - self._handed_out >= self._most:
                    self._room.clear()
                    await self._room.wait()
        except Exception as error:
            self.fail(error)
        finally:
            self._running -= 1
            self._wake.set()
            if (close := getattr(source, "aclose", None)) is not None:
                await close()


async def nothing(prompt: Sequence[int], params: SamplingParams, **_: Any) -> AsyncGenerator[TextDelta, None]:
    """The continuations of a prompt that is not gone on with."""
    for index in range(params.n):
        yield TextDelta(index, "", (), None, "length", num_prompt_tokens=len(prompt), num_generated_tokens=0)


def _coalesced(ready: list[Numbered]) -> list[Numbered]:
    by_choice: dict[tuple[int, int], list[TextDelta]] = {}
    for number, delta in ready:
        by_choice.setdefault((number, delta.index), []).append(delta)
    return [(number, _joined(deltas)) for (number, _), deltas in by_choice.items()]


def _joined(deltas: list[TextDelta]) -> TextDelta:
    last = deltas[-1]
    if len(deltas) == 1:
        return last
    infos = [delta.logprobs for delta in deltas if delta.logprobs is not None]
    return TextDelta(
        index=last.index,
        text="".join(delta.text for delta in deltas),
        token_ids=tuple(chain.from_iterable(delta.token_ids for delta in deltas)),
        logprobs=tuple(chain.from_iterable(infos)) if infos else None,
        finish_reason=last.finish_reason,
        num_prompt_tokens=last.num_prompt_tokens,
        num_generated_tokens=last.num_generated_tokens,
        num_cached_tokens=max(delta.num_cached_tokens for delta in deltas),
        stop_reason=last.stop_reason,
        error=last.error,
    )


async def while_connected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Do ``work`` for as long as somebody waits for it. The request's body must have been read.

    :raises ClientDisconnect: when the client left first; ``work`` has then been cancelled and has ended.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
