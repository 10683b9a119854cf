"""What the routes share: the service, the calls that run, and whether new ones are taken."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar
from uuid import uuid4

from core.errors import EngineDeadError, RequestError
from core.interfaces.frontend import Service, TextDelta
from core.interfaces.request import EngineStats, SamplingParams
from frontends.openai_http import fastdeploy
from frontends.openai_http.current import asker
from frontends.openai_http.deltas import Deltas, nothing
from frontends.openai_http.intake import Intake
from frontends.openai_http.metrics import Metrics
from frontends.openai_http.pace import Pace
from frontends.openai_http.rates import Rates
from frontends.openai_http.schema import GenerationBody
from frontends.openai_http.settings import HttpSettings
from frontends.openai_http.together import Together
from frontends.openai_http.tracing import note_tokens

Result = TypeVar("Result")
STATS_TIMEOUT = 2.0  # seconds; a scrape must not hang because the engine does


@dataclass(frozen=True)
class Call:
    """One generation call: all that the engine and the answer need, whichever route it came by."""

    id: str
    model: str
    created: int
    prompts: Sequence[list[int]]
    params: SamplingParams
    priority: int
    cache_salt: str
    stream: bool
    include_usage: bool
    continuous_usage: bool
    generates: bool = True  # else the answer is the prompt, read
    every_token: bool = False  # each is told of, also one that adds no text
    tokens_a_chunk: int = 1

    @property
    def request_ids(self) -> list[str]:
        """One for each prompt, by which the service knows it."""
        if len(self.prompts) == 1:
            return [self.id]
        return [f"{self.id} {number}" for number in range(len(self.prompts))]  # no call's id has a space

    @classmethod
    def of(cls, body: GenerationBody, kind: str, model: str, prompts: Sequence[list[int]], params: SamplingParams) -> Call:
        """``kind`` begins the id, with a mark behind it; it goes on as the request says, or at random."""
        options = body.stream_options
        return cls(
            id=f"{kind}{body.request_id or uuid4().hex}",
            model=model,
            created=int(time.time()),
            prompts=prompts,
            params=params,
            priority=body.priority or 0,
            cache_salt=body.cache_salt or "",
            stream=bool(body.stream),
            include_usage=bool(options and options.include_usage),
            continuous_usage=bool(options and options.continuous_usage_stats),
            generates=body.max_tokens != 0,
            every_token=bool(body.return_token_ids),
            tokens_a_chunk=body.max_streaming_response_tokens or 1,
        )


@dataclass
class _Running:
    """A call that is being answered. ``timer`` ends it if it waits too long."""

    call: Call
    deltas: Deltas
    asker: str
    timer: asyncio.TimerHandle | None = None


@dataclass
class _Reading:
    """Prompts that are read and not gone on with. ``ended``: why, if not because it is done."""

    task: asyncio.Task[Any]
    asker: str
    ended: Exception | None = None

    def end(self, reason: Exception) -> None:
        self.ended = self.ended or reason
        self.task.cancel()


class Door:
    def __init__(self, service: Service, section: HttpSettings, together: Together | None = None) -> None:
        """``together``: with the other processes that answer at this door."""
        self.service = service
        self.together = together
        self.section = section
        self.intake = Intake(section.max_request_bytes)
        self.metrics = Metrics()
        self.pace = Pace()
        self.rates = Rates(section.requests_per_minute, section.tokens_per_minute)
        self.version = _version()
        identity = f"{self.version} {service.card.name} {service.card.vocab}"
        self.fingerprint = "fp_" + hashlib.sha256(identity.encode()).hexdigest()[:10]
        self.paused = False  # nothing new is taken for a while, by an operator's will
        self._calls: dict[str, _Running] = {}
        self._readings: dict[str, _Reading] = {}
        self._idle = asyncio.Event()  # set while no call runs
        self._idle.set()
        self._readers: set[asyncio.Task[Any]] = set()  # bodies on their way in
        self._closed: Exception | None = None
        self._last_stats = EngineStats()

    @property
    def closed(self) -> Exception | None:
        """Why nothing new is taken; None while it is."""
        return self._closed

    @property
    def served_names(self) -> tuple[str, ...]:
        return self.service.card.served_names or (self.service.card.name,)

    def model_named(self, name: str | None) -> str:
        """The name the answer carries. :raises RequestError: 404 for a model that is not served here."""
        if name is None or (name == fastdeploy.ANY_MODEL and self.section.compat == fastdeploy.NAME):
            return self.served_names[0]
        if name not in self.served_names:
            raise RequestError(
                f"the model {name[:200]!r} is not served here; this server has {', '.join(map(repr, self.served_names))}",
                param="model",
                code="model_not_found",
                status=404,
            )
        return name

    async def stats(self) -> tuple[EngineStats, bool]:
        """The engine's figures, and whether they are of now: the last ones known, when it does not answer in time."""
        try:
            self._last_stats = await asyncio.wait_for(self.service.stats(), STATS_TIMEOUT)
            return self._last_stats, True
        except (EngineDeadError, TimeoutError):
            return self._last_stats, False

    async def reading(self, body: Coroutine[Any, Any, Result]) -> Result:
        """``body``, once it has come in. A client that is slow with it does not hold up the stop.

        :raises Exception: the reason of ``close``, when that came first.
        :raises RequestError: when as many are on their way as there may be calls.
        """
        if self._closed is not None:
            body.close()
            raise self._closed
        if len(self._readers) >= self.section.max_concurrency:
            body.close()
            raise RequestError(
                f"the bodies of {len(self._readers)} requests are on their way, the most this server takes: try again later",
                code="rate_limit_exceeded",
                status=429,
            )
        reader = asyncio.ensure_future(body)
        self._readers.add(reader)
        try:
            return await reader
        except asyncio.CancelledError:
            if self._closed is None or (task := asyncio.current_task()) is None or task.cancelling():
                raise
            raise self._closed from None
        finally:
            self._readers.discard(reader)
            reader.cancel()

    @property
    def num_calls(self) -> int:
        """In flight, whichever process has them."""
        own = len(self._calls) + len(self._readings)
        return own if self.together is None else own + self.together.calls_elsewhere()

    def patience(self) -> int:
        """Seconds in which a call that comes now would probably have had its turn: what those that are refused are told."""
        waiting = sum(not running.deltas.num_tokens for running in self._calls.values()) + len(self._readings)
        return self.pace.wait(waiting + 1)

    def admit(self) -> None:
        """:raises Exception: while nothing new is taken: it is closed, or paused, or there are too many calls."""
        if self._closed is not None:
            raise self._closed
        if self.paused:
            raise RequestError("the server is paused: try again later", code="server_paused", status=503)
        if self.num_calls >= self.section.max_concurrency:
            raise RequestError(
                f"{self.num_calls} generation calls are in flight, the most this server takes: try again later",
                code="rate_limit_exceeded",
                status=429,
            )

    def call(self, body: GenerationBody, kind: str, model: str, prompts: Sequence[list[int]], params: SamplingParams) -> Call:
        """As ``Call.of``. :raises RequestError: for a rank that a request may not give itself here."""
        allowed, rank = self.section.priorities, body.priority or 0
        if rank and allowed == "none":
            raise RequestError(
                "this server takes no priority from requests: leave it out",
                param="priority",
                code="unsupported_parameter",
            )
        if rank < 0 and allowed == "lower":
            raise RequestError(
                f"priority must be at least 0, got {rank}: a request may let others go first, and may go before them "
                "where the server was started with --openai-http-priorities all",
                param="priority",
                code="unsupported_parameter",
            )
        return Call.of(body, kind, model, prompts, params)

    def _admit_as(self, call_id: str) -> None:
        self.admit()
        if call_id in self._calls or call_id in self._readings:
            raise RequestError(f"the request id {call_id!r} is in use", param="request_id", code="duplicate_id")

    async def reading_call(self, call_id: str, work: Coroutine[Any, Any, Result]) -> Result:
        """What ``work`` gives, for which the model reads prompts. It is a call like others while it runs.

        :raises RequestError: as ``begin`` does; when it is aborted.
        :raises Exception: the reason of ``end_calls``.
        """
        try:
            self._admit_as(call_id)
        except Exception:
            work.close()
            raise
        task = asyncio.ensure_future(work)
        self._readings[call_id] = reading = _Reading(task, asker.get())
        self._note_calls()
        self.pace.began()
        try:
            return await task
        except asyncio.CancelledError:
            if reading.ended is None or (caller := asyncio.current_task()) is None or caller.cancelling():
                raise
            raise reading.ended from None
        finally:
            self.pace.ended(served=task.done() and not task.cancelled() and task.exception() is None)
            task.cancel()
            del self._readings[call_id]
            self._note_calls()

    def _note_calls(self) -> None:
        number = len(self._calls) + len(self._readings)
        if self.together is not None:
            self.together.note_calls(number)
        if number:
            self._idle.clear()
        else:
            self._idle.set()

    def begin(self, call: Call) -> Deltas:
        """:raises RequestError: as ``admit`` does, and when the call's id is taken."""
        self._admit_as(call.id)
        generate: Callable[..., AsyncIterator[TextDelta]] = self.service.generate
        if not call.generates:
            generate = nothing
        elif self.section.compat == fastdeploy.NAME:
            generate = partial(fastdeploy.generate, self.service)
        deltas = Deltas(
            [
                generate(prompt, call.params, request_id=request_id, priority=call.priority, cache_salt=call.cache_salt)
                for request_id, prompt in zip(call.request_ids, call.prompts, strict=True)
            ],
            least=call.tokens_a_chunk,
        )
        self._calls[call.id] = running = _Running(call, deltas, asker.get())
        self._note_calls()
        self.pace.began()
        self.rates.charge(running.asker, sum(map(len, call.prompts)))
        if self.section.max_waiting_time is not None:
            running.timer = asyncio.get_running_loop().call_later(self.section.max_waiting_time, self._waited, running)
        self.metrics.in_flight.inc()
        return deltas

    async def finish(self, call: Call) -> None:
        """The call is over, or its client has left: what still runs of it is aborted."""
        if (running := self._calls.pop(call.id, None)) is not None:
            self.metrics.in_flight.dec()
            self._note_calls()
            self.pace.ended(served=running.deltas.num_tokens > 0)
            if running.timer is not None:
                running.timer.cancel()
            self.rates.charge(running.asker, running.deltas.num_tokens)
            note_tokens(sum(map(len, call.prompts)), running.deltas.num_tokens)
            await running.deltas.close()

    def _waited(self, running: _Running) -> None:
        if not running.deltas.num_tokens:
            message = f"no token came within {self.section.max_waiting_time:g} s, the longest a call may wait: try again later"
            running.deltas.fail(RequestError(message, code="timeout", status=429))

    async def abort(self, names: Sequence[str] | None, who: str | None = None) -> tuple[dict[str, int], list[str]]:
        """End these calls, or all of them: their answers end with what they have, and the finish reason "abort".

        Of a call whose prompts are only read there is nothing to have: its answer is an error.

        :param who: whose they are: those of others are not found; None for anybody's.
        :returns: the calls that were ended, by id, with how many tokens each had; and the names that no call has.
        """
        askers = {call_id: call.asker for calls in (self._calls, self._readings) for call_id, call in calls.items()}
        every = [call_id for call_id, whose in askers.items() if who in (None, whose)]
        ids = {name: call_id for call_id in every for name in (call_id, _bare(call_id))}
        wanted = every if names is None else [ids[name] for name in names if name in ids]
        aborted = {}
        for call_id in dict.fromkeys(wanted):
            if (reading := self._readings.get(call_id)) is not None:
                reading.end(RequestError("the call was aborted while its prompt was read", code="aborted", status=409))
                aborted[call_id] = 0
                continue
            running = self._calls[call_id]
            aborted[call_id] = running.deltas.num_tokens
            for request_id in running.call.request_ids:
                await self.service.abort(request_id)
        return aborted, [name for name in names or () if name not in ids]

    async def idle(self) -> None:
        """Returns when no call runs."""
        await self._idle.wait()

    def close(self, reason: Exception) -> None:
        """From now on a new call is answered with ``reason``. The first reason stays."""
        self._closed = self._closed or reason
        for reader in self._readers:
            reader.cancel()

    def end_calls(self, reason: Exception) -> None:
        """End every running call with ``reason``; streams tell it in an error event."""
        for running in list(self._calls.values()):
            running.deltas.fail(reason)
        for reading in self._readings.values():
            reading.end(reason)


def _bare(call_id: str) -> str:
    """Without the word that says what kind of call it is."""
    return re.split("[-_]", call_id, maxsplit=1)[1]


def _version() -> str:
    try:
        return version("dovetail-serve")
    except PackageNotFoundError:
        return "0+unknown"
