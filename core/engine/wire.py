"""What crosses between a front end's process and the engine's: msgpack, typed, never a pickle."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from core.errors import Problem
from core.interfaces.limits import RequestLimits
from core.interfaces.request import EngineStats, Request, TokenEvent, TokenLogprobs


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """Requests that are accepted or refused together: the continuations of one call; or one whose prompt is read."""

    requests: list[Request]


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    request_ids: list[str]


class AskStats(msgspec.Struct, frozen=True, tag="ask_stats"):
    ticket: int


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    pass


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    seconds: float
    limits: RequestLimits


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Why the engine ends by itself: problems the user can mend, or what broke and its traceback.

    ``said``: what broke is in words of our own, which clients may read.
    """

    problems: list[Problem]
    exit_code: int
    what: str = ""
    traceback: str = ""
    said: bool = False


class Step(msgspec.Struct, frozen=True, tag="step"):
    events: list[TokenEvent]


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """Nothing of these requests runs; the fields are ``RequestError``'s."""

    request_ids: list[str]
    message: str
    param: str | None
    code: str
    status: int


class Stats(msgspec.Struct, frozen=True, tag="stats"):
    ticket: int
    stats: EngineStats


class Embedded(msgspec.Struct, frozen=True, tag="embedded"):
    """``state`` is float32, in the order of the host's bytes."""

    request_id: str
    state: bytes


class Scored(msgspec.Struct, frozen=True, tag="scored"):
    request_id: str
    logprobs: list[TokenLogprobs]


ToEngine = Submit | Abort | AskStats | Stop
FromEngine = Ready | Failed | Step | Refused | Stats | Embedded | Scored

encode = msgspec.msgpack.Encoder().encode
decode_to_engine: Callable[[bytes], ToEngine] = msgspec.msgpack.Decoder(ToEngine).decode
decode_from_engine: Callable[[bytes], FromEngine] = msgspec.msgpack.Decoder(FromEngine).decode
