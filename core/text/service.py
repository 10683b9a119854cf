"""Text in, text out, over an engine that knows only token ids: what a front end calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from core.errors import RequestError, UserError
from core.interfaces.frontend import ChatTemplate, Health, ModelCard, Pooling, Service, TextDelta, TokenInfo, Tokenizer
from core.interfaces.limits import RequestLimits
from core.interfaces.request import EngineStats, Request, SamplingParams, TokenEvent, TokenLogprobs
from core.text.assembler import TextAssembler, token_info
from core.text.chat_template import JinjaChatTemplate

SEEDS = 2**64
ONE_TOKEN = SamplingParams(max_tokens=1)
INFOS_AT_ONCE = 64  # tokens put into words before others have their turn: with alternatives, some milliseconds
MAX_TEMPLATE = 100_000  # characters of a request's own chat template


class Tokens(Protocol):
    """What submitted requests gain, as (number of the request, event)."""

    def __aiter__(self) -> AsyncIterator[tuple[int, TokenEvent]]: ...
    def drop(self, number: int) -> None: ...
    def abort(self) -> None: ...
    def close(self) -> None: ...


class EngineLink(Protocol):
    """The engine, wherever it runs; ``core.engine.client.EngineClient`` reaches one in another process."""

    def submit(self, requests: Sequence[Request]) -> Tokens: ...
    def health(self) -> Health: ...
    async def embed(self, prompt_token_ids: Sequence[int], *, mean: bool) -> NDArray[np.float32]: ...
    async def score(self, prompt_token_ids: Sequence[int], most: int) -> list[TokenLogprobs]: ...
    async def stats(self) -> EngineStats: ...
    async def wait_dead(self) -> str: ...


class TextService(Service):
    def __init__(
        self,
        engine: EngineLink,
        tokenizer: Tokenizer,
        chat_template: ChatTemplate | None,
        card: ModelCard,
        limits: RequestLimits,
    ) -> None:
        self.card = card
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self._engine = engine
        self._limits = limits
        self._running: dict[str, Tokens] = {}
        self._quiet = asyncio.Event()  # set while nothing runs
        self._quiet.set()
        self._draining = False

    async def generate(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        request_id: str,
        priority: int = 0,
        cache_salt: str = "",
    ) -> AsyncGenerator[TextDelta, None]:
        if self._draining:
            raise RequestError("the server is shutting down", code="shutting_down", status=503)
        if request_id in self._running:
            raise RequestError(f"a request {request_id!r} is already running", param="request_id", code="duplicate_id")
        self._limits.check(prompt_token_ids, params)
        if self._limits.at_once is not None and params.n > self._limits.at_once:
            raise RequestError(f"n must be at most {self._limits.at_once} on this server, got {params.n}", param="n")
        requests = continuations(request_id, prompt_token_ids, params, priority=priority, cache_salt=cache_salt)
        assemblers = [
            TextAssembler(self.tokenizer, request.params, index=index, num_prompt_tokens=len(prompt_token_ids))
            for index, request in enumerate(requests)
        ]
        tokens = self._engine.submit(requests)
        self._running[request_id] = tokens
        self._quiet.clear()
        try:
            async for index, event in tokens:
                delta = assemblers[index].feed(event)
                if delta.finish_reason is not None and event.finish_reason is None:
                    tokens.drop(index)  # a stop string: the engine knows no text and would go on
                yield delta
        finally:
            tokens.close()
            del self._running[request_id]
            if not self._running:
                self._quiet.set()

    async def embed(self, prompt_token_ids: Sequence[int], *, pooling: Pooling = "last") -> list[float]:
        self._limits.check(prompt_token_ids, ONE_TOKEN)
        return of_length_one(await self._engine.embed(prompt_token_ids, mean=pooling == "mean"))

    async def score(self, prompt_token_ids: Sequence[int], most: int = 0) -> list[TokenInfo]:
        self._limits.check(prompt_token_ids, ONE_TOKEN)
        scored = await self._engine.score(prompt_token_ids, most)
        offset = len(self.tokenizer.token_text(prompt_token_ids[0]))
        infos = []
        for number, (token, logprobs) in enumerate(zip(prompt_token_ids[1:], scored, strict=True)):
            if number % INFOS_AT_ONCE == 0:
                await asyncio.sleep(0)
            infos.append(token_info(self.tokenizer, token, logprobs, offset))
            offset += len(infos[-1].text)
        return infos

    def template(self, source: str) -> ChatTemplate:
        if len(source) > MAX_TEMPLATE:
            raise RequestError(f"a chat template has at most {MAX_TEMPLATE} characters", param="chat_template")
        try:
            return JinjaChatTemplate({"default": source}, getattr(self.tokenizer, "named", {}))
        except UserError as error:
            raise RequestError(error.problems[0].what, param="chat_template") from None

    async def abort(self, request_id: str) -> bool:
        tokens = self._running.get(request_id)
        if tokens is None:
            return False
        tokens.abort()
        return True

    def health(self) -> Health:
        health = self._engine.health()
        if health.ready and self._draining:
            return Health(alive=True, ready=False, detail="the server is shutting down")
        return health

    async def stats(self) -> EngineStats:
        return await self._engine.stats()

    async def drain(self, timeout: float | None = None) -> None:
        """After ``timeout`` what still runs is aborted: its clients get an end instead of a cut."""
        self._draining = True
        try:
            async with asyncio.timeout(timeout):
                await self._quiet.wait()
        except TimeoutError:
            for tokens in list(self._running.values()):
                tokens.abort()

    async def wait_dead(self) -> str:
        return await self._engine.wait_dead()


def of_length_one(state: NDArray[np.float32]) -> list[float]:
    length = float(np.linalg.norm(state))
    shown: list[float] = (state / np.float32(length) if length > 0.0 else state).tolist()
    return shown


def continuations(
    request_id: str, prompt_token_ids: Sequence[int], params: SamplingParams, *, priority: int = 0, cache_salt: str = ""
) -> list[Request]:
    """One engine request for each of ``params.n``: named ``id``, ``id-1``, ...; a given seed counts up from one to the next."""
    arrived = time.monotonic()
    prompt = list(prompt_token_ids)
    return [
        Request(
            request_id=f"{request_id}-{index}" if index else request_id,
            prompt_token_ids=prompt,
            params=params if params.n == 1 else msgspec.structs.replace(params, n=1, seed=_seed(params.seed, index)),
            priority=priority,
            arrived=arrived,
            cache_salt=cache_salt,
        )
        for index in range(params.n)
    ]


def _seed(seed: int | None, index: int) -> int | None:
    if seed is None or seed + index < SEEDS:
        return None if seed is None else seed + index
    return seed + index - SEEDS
