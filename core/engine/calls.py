"""What the tasks of one loop ask of an engine in another process, and how its answers come to them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from core.engine import wire
from core.engine.stream import Life, TokenStream
from core.errors import EngineDeadError, RequestError
from core.interfaces.frontend import Health
from core.interfaces.limits import RequestLimits
from core.interfaces.request import EngineStats, ReadFor, Request, SamplingParams, TokenEvent, TokenLogprobs

PAUSE, LONGEST_PAUSE = 50e-6, 0.01
"""Seconds between two events of a stream, for each request that is running: so a loop writes at most 20,000 times a second,
which takes about half of its time, and nobody waits for longer than is seen."""

WATCH_SECONDS = 0.25  # a process that died silently is noticed after at most this


class State(Enum):
    LOADING = "loading"
    READY = "ready"
    DEAD = "dead"  # for good
    CLOSED = "closed"


class EngineCalls(ABC):
    """An engine as its askers see it, through all its lives: streams and futures, which are touched in the loop only.

    A thread reads what the engine says (``_watch``), and hands it to the loop. ``start`` and ``wait_ready`` are for whoever
    begins, outside any loop; the rest is for tasks.
    """

    def __init__(self, numbers: itertools.count[int]) -> None:
        """``numbers``: those that requests and questions are known by; nobody else who asks this engine has one of them."""
        self._state = State.LOADING
        self._detail = "the engine is loading"
        self._error: Exception | None = None  # why it is dead
        self._settled = threading.Event()  # ready for the first time, or dead
        self._life: Life | None = None
        self._lock = threading.Lock()  # state, life and waiters, between the thread and everyone else
        self._watcher = threading.Thread(target=self._watch, name="engine-watch", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._streams: dict[str, tuple[TokenStream, int]] = {}
        self._asked: dict[str | int, asyncio.Future[Any]] = {}  # by a reading's request id, or a ticket
        self._mourners: set[asyncio.Future[None]] = set()
        self._numbers = numbers
        self._limits: RequestLimits | None = None
        self.load_seconds = 0.0

    @property
    @abstractmethod
    def trouble(self) -> str:
        """Why nobody should come now though the engine lives; nothing while all is well."""

    @abstractmethod
    def _watch(self) -> None:
        """The thread's work."""

    # -- whoever begins: no event loop --------------------------------------------------------------------------------

    def wait_ready(self) -> RequestLimits:
        """Returns when the engine takes requests, with what they must keep to.

        :raises UserError: when it could not be built for a reason the user can mend.
        :raises EngineDeadError: when it broke or died.
        """
        while not self._settled.wait(WATCH_SECONDS):  # in slices, so that Ctrl-C is heard
            pass
        if self._error is not None:
            raise self._error
        if self._limits is None:
            raise EngineDeadError(self._detail)  # closed meanwhile
        return self._limits

    @property
    def dead(self) -> bool:
        return self._state is State.DEAD

    # -- for tasks ----------------------------------------------------------------------------------------------------

    def submit(self, requests: Sequence[Request]) -> TokenStream:
        """Run requests; they are accepted or refused together. Close the stream when leaving it early.

        The engine's ``RequestError`` (a full queue), or ``EngineDeadError``, is raised where the stream is read.

        :raises EngineDeadError: when the engine is loading again, or gone.
        """
        self._enter()
        life = self._living()
        # A number of our own: a request id may be used again while late tokens of its first use are still on their way.
        sent = [
            msgspec.structs.replace(request, request_id=f"{request.request_id}#{next(self._numbers)}") for request in requests
        ]
        stream = TokenStream(life, [request.request_id for request in sent], partial(self._forget, life), self._pause)
        if not life.send(wire.Submit(sent)):
            raise EngineDeadError("the engine does not take requests any more")
        for number, request in enumerate(sent):
            self._streams[request.request_id] = (stream, number)
        return stream

    def _pause(self) -> float:
        return min(LONGEST_PAUSE, PAUSE * len(self._streams))

    def health(self) -> Health:
        alive, trouble = self._state is State.READY, self.trouble
        return Health(alive=alive, ready=alive and not trouble, detail=trouble if alive else self._detail)

    async def stats(self) -> EngineStats:
        ticket = next(self._numbers)
        stats: EngineStats = await self._ask(ticket, wire.AskStats(ticket))
        return stats

    async def embed(self, prompt_token_ids: Sequence[int], *, mean: bool) -> NDArray[np.float32]:
        """The hidden state [H] of a prompt's last token behind the final norm, or the mean over all of its tokens."""
        state: bytes = await self._read(prompt_token_ids, "mean" if mean else "last")
        return np.frombuffer(state, np.float32)

    async def score(self, prompt_token_ids: Sequence[int], most: int) -> list[TokenLogprobs]:
        """How likely each token of a prompt but the first is behind those before it, with the ``most`` likeliest."""
        logprobs: list[TokenLogprobs] = await self._read(prompt_token_ids, "likelihoods", most)
        return logprobs

    async def _read(self, prompt_token_ids: Sequence[int], read: ReadFor, most: int | None = None) -> Any:
        """A task that is cancelled ends what the engine does for it."""
        name, params = f"read#{next(self._numbers)}", SamplingParams(max_tokens=1, logprobs=most)
        request = Request(request_id=name, prompt_token_ids=list(prompt_token_ids), params=params, read=read)
        try:
            return await self._ask(name, wire.Submit([request]))
        except asyncio.CancelledError:
            if self._life is not None:
                self._life.send(wire.Abort([name]))
            raise

    async def _ask(self, name: str | int, question: wire.AskStats | wire.Submit) -> Any:
        loop = self._enter()
        life = self._living()
        future: asyncio.Future[Any] = loop.create_future()
        self._asked[name] = future
        try:
            if not life.send(question):
                raise EngineDeadError("the engine does not answer any more")
            return await future
        finally:
            self._asked.pop(name, None)

    async def wait_dead(self) -> str:
        """Returns, with the reason, when the engine is gone for good."""
        loop = self._enter()
        future: asyncio.Future[None] = loop.create_future()
        self._mourners.add(future)  # before the look at the state: the thread changes it first, then wakes us
        try:
            if self._state is not State.DEAD:
                await future
        finally:
            self._mourners.discard(future)
        return self._detail

    def _enter(self) -> asyncio.AbstractEventLoop:
        self._loop = asyncio.get_running_loop()
        return self._loop

    def _living(self) -> Life:
        with self._lock:
            if self._state is not State.READY or self._life is None:
                raise EngineDeadError(self._detail)
            return self._life

    def _forget(self, life: Life, wire_ids: list[str]) -> None:
        for wire_id in wire_ids:
            self._streams.pop(wire_id, None)
        life.send(wire.Abort(wire_ids))  # a life that is over takes it no more, and need not

    # -- what the thread hands to the loop ----------------------------------------------------------------------------

    def _deliver(self, events: list[TokenEvent]) -> None:
        for event in events:
            found = self._streams.get(event.request_id)
            if found is None:
                continue  # late: it was dropped meanwhile
            stream, number = found
            stream.put(number, event)
            if event.finish_reason is not None:
                del self._streams[event.request_id]

    def _refuse(self, message: wire.Refused) -> None:
        error = RequestError(message.message, param=message.param, code=message.code, status=message.status)
        found = [self._streams.pop(wire_id, None) for wire_id in message.request_ids]
        for stream, number in filter(None, found):
            stream.refuse(number, error)
        for future in filter(None, map(self._asked.get, message.request_ids)):
            if not future.done():
                future.set_exception(error)

    def _answer(self, message: wire.Stats | wire.Embedded | wire.Scored) -> None:
        future = self._asked.get(message.ticket if isinstance(message, wire.Stats) else message.request_id)
        if future is None or future.done():
            return
        match message:
            case wire.Stats():
                future.set_result(message.stats)
            case wire.Embedded():
                future.set_result(message.state)
            case wire.Scored():
                future.set_result(message.logprobs)

    def _bury(self, life: Life, reason: str) -> None:
        lost = {id(stream): stream for stream, _ in self._streams.values() if stream.life is life}
        self._streams = {key: found for key, found in self._streams.items() if found[0].life is not life}
        for stream in lost.values():
            stream.fail(EngineDeadError(reason))
        for future in list(self._asked.values()):
            if not future.done():
                future.set_exception(EngineDeadError(reason))

    def _mourn(self) -> None:
        for future in self._mourners:
            if not future.done():
                future.set_result(None)

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _in_loop(self, function: Callable[..., None], *arguments: Any) -> None:
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # a closed loop: nobody listens any more
                loop.call_soon_threadsafe(function, *arguments)

    def _hear(self, message: wire.FromEngine) -> None:
        """What a life says while it lasts."""
        if isinstance(message, wire.Step):
            self._in_loop(self._deliver, message.events)
        elif isinstance(message, wire.Refused):
            self._in_loop(self._refuse, message)
        elif isinstance(message, (wire.Stats, wire.Embedded, wire.Scored)):
            self._in_loop(self._answer, message)
        elif isinstance(message, wire.Ready):
            self.load_seconds, self._limits = message.seconds, message.limits
            with self._lock:
                if self._state is State.LOADING:
                    self._state, self._detail = State.READY, ""
            self._settled.set()
