"""How much one asker may ask for: requests and tokens a minute, each a bucket that refills steadily.

An asker is a key's name, or, where no keys are wanted, a client's address.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from time import monotonic

from starlette.types import ASGIApp, Receive, Scope, Send

from frontends.openai_http.current import asker
from frontends.openai_http.errors import error_body, refusal

MINUTE = 60.0  # seconds
_REMEMBERED = 10_000  # askers; beyond that who has not asked for longest is forgotten


class Bucket:
    """Holds a minute's worth. What is taken beyond that is a debt, which is waited off."""

    def __init__(self, a_minute: int, now: float) -> None:
        self._most = float(a_minute)
        self._level = self._most
        self._seen = now

    def level(self, now: float) -> float:
        self._level = min(self._most, self._level + (now - self._seen) * self._most / MINUTE)
        self._seen = now
        return self._level

    def take(self, amount: float) -> None:
        self._level -= amount

    def wait(self, amount: float, now: float) -> float:
        """Seconds until there is so much in it."""
        return max(0.0, amount - self.level(now)) * MINUTE / self._most


class Rates:
    """:param requests, tokens: a minute and an asker; None for any number."""

    def __init__(self, requests: int | None, tokens: int | None, clock: Callable[[], float] = monotonic) -> None:
        self._limits = {"requests": requests, "tokens": tokens}
        self._clock = clock
        self._buckets: OrderedDict[str, dict[str, Bucket]] = OrderedDict()  # who asked last comes last

    @property
    def limited(self) -> bool:
        return any(self._limits.values())

    def admit(self, who: str) -> tuple[str, float] | None:
        """None when one more request may come; else what there is too much of, and for how many seconds."""
        now = self._clock()
        buckets = self._of(who, now)
        for kind, bucket in buckets.items():
            if (wait := bucket.wait(1.0, now)) > 0.0:
                return kind, wait
        if "requests" in buckets:
            buckets["requests"].take(1.0)
        return None

    def charge(self, who: str, tokens: int) -> None:
        """So many tokens were taken in or generated. What a request costs is known only afterwards: it may end in debt."""
        if (bucket := self._of(who, self._clock()).get("tokens")) is not None:
            bucket.take(tokens)

    def refusal_of(self, kind: str) -> str:
        return f"more than {self._limits[kind]} {kind} a minute were asked for, the most one key or client may: try again later"

    def _of(self, who: str, now: float) -> dict[str, Bucket]:
        if (found := self._buckets.get(who)) is not None:
            self._buckets.move_to_end(who)
            return found
        if len(self._buckets) >= _REMEMBERED:
            self._buckets.popitem(last=False)
        self._buckets[who] = {kind: Bucket(limit, now) for kind, limit in self._limits.items() if limit is not None}
        return self._buckets[who]


class LimitRates:
    """Refuses posts of an asker who has asked for too much, before their bodies are read."""

    def __init__(self, app: ASGIApp, rates: Rates) -> None:
        self._app = app
        self._rates = rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        who = asker.get()
        if not who:
            client = scope.get("client")
            who = str(client[0]) if client else "unknown"
            asker.set(who)
        too_much = self._rates.admit(who)
        if too_much is None:
            await self._app(scope, receive, send)
            return
        kind, seconds = too_much
        body = error_body(429, self._rates.refusal_of(kind), code="rate_limit_exceeded")
        headers = {"retry-after": str(math.ceil(seconds))}
        await refusal(scope["path"], 429, body, headers)(scope, receive, send)
