"""``AsyncLLM``: the engine beside your own event loop, in a process of its own, and no server between."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Any

from core.interfaces.frontend import Pooling, Tokenizer
from core.interfaces.request import EngineStats, SamplingParams
from core.launch import Continuation, open_service
from frontends.offline.outputs import CompletionDelta, EmbeddingOutput, RequestOutput, completion_delta, completion_output
from frontends.offline.prompts import Message, Prompt, default_params, needed_template, read_prompt

if TYPE_CHECKING:
    from core.text.service import TextService


class AsyncLLM:
    """A model, loaded into a process beside this one; requests run together, each in the task that made it::

        async with AsyncLLM("demo") as llm:
            async for delta in llm.stream("The sea is", SamplingParams(max_tokens=24)):
                print(delta.text, end="", flush=True)
            sea, snow = await asyncio.gather(llm.generate("The sea is"), llm.generate("Snow is"))

    ``model`` and the settings are those of ``LLM``. A task that is cancelled, and a stream that is left early, end their
    requests in the engine; so does leaving the block.

    :raises core.errors.UserError: on entering the block, when the settings are wrong.
    """

    def __init__(self, model: str = "demo", **settings: Any) -> None:
        self._settings = {"model": model, **settings}
        self._numbers = itertools.count()
        self._service: TextService | None = None
        self._ending = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Compose, and load the model: what entering the block does. Nothing, when that was done before."""
        if self._service is None:
            from core.compose import compose

            plan = await asyncio.to_thread(compose, [], overrides=self._settings)
            self._service = await self._ending.enter_async_context(open_service(plan))

    async def shutdown(self) -> None:
        """End the engine's process, and with it what still runs. Calling it twice is harmless."""
        self._service = None
        await self._ending.aclose()

    async def __aenter__(self) -> AsyncLLM:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.shutdown()

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
    ) -> RequestOutput:
        """One prompt's continuations, whole. Prompts are written as for ``LLM.generate``; without ``params`` the
        checkpoint's own defaults hold. ``priority``: lower runs earlier; requests share cached pages under one salt only.

        :raises core.errors.RequestError: when the prompt cannot be served, or as many as may wait do so already.
        :raises core.errors.EngineDeadError: when the engine is gone.
        """
        text, ids = read_prompt(0, prompt, self._open().tokenizer)
        return await self._whole(text, ids, params, request_id, priority, cache_salt)

    async def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> RequestOutput:
        """The answer to one conversation, by the checkpoint's chat template. Raises what ``generate`` raises."""
        text, ids = self._rendered(messages, chat_template_kwargs)
        return await self._whole(text, ids, params, request_id, priority, cache_salt)

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
    ) -> AsyncGenerator[CompletionDelta, None]:
        """What each continuation gains, as it gains it; those of ``params.n`` come interleaved, told apart by ``index``."""
        _, ids = read_prompt(0, prompt, self._open().tokenizer)
        return self._deltas(ids, params, request_id, priority, cache_salt)

    def stream_chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> AsyncGenerator[CompletionDelta, None]:
        """The answer to one conversation, as it is written."""
        _, ids = self._rendered(messages, chat_template_kwargs)
        return self._deltas(ids, params, request_id, priority, cache_salt)

    async def embed(self, prompt: Prompt, *, pooling: Pooling = "last", request_id: str | None = None) -> EmbeddingOutput:
        """What the model makes of one prompt, as a vector of length 1; see ``LLM.embed``."""
        service = self._open()
        text, ids = read_prompt(0, prompt, service.tokenizer)
        return EmbeddingOutput(request_id or self._next_name(), text, ids, await service.embed(ids, pooling=pooling))

    async def abort(self, request_id: str) -> bool:
        """End a request that was given this id: it finishes with the reason "abort". False when there is none."""
        return await self._open().abort(request_id)

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer: ``encode(text) -> ids`` and ``decode(ids) -> text``."""
        return self._open().tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What holds for prompts that come without params: the checkpoint's own defaults."""
        return default_params(self._open().card)

    async def stats(self) -> EngineStats:
        """The engine's counters: tokens, pages, preemptions."""
        return await self._open().stats()

    def _open(self) -> TextService:
        if self._service is None:
            raise RuntimeError("this AsyncLLM is not running: use it in `async with`, or await start() first")
        return self._service

    def _rendered(self, messages: Sequence[Message], more: Mapping[str, Any] | None) -> tuple[str, list[int]]:
        service = self._open()
        text = needed_template(service.chat_template, service.card).render(messages, **(more or {}))
        return text, service.tokenizer.encode(text, add_special_tokens=False)

    async def _whole(
        self, text: str | None, ids: list[int], params: SamplingParams | None, name: str | None, priority: int, salt: str
    ) -> RequestOutput:
        service = self._open()
        name, params = name or self._next_name(), params or default_params(service.card)
        parts = [Continuation(index) for index in range(params.n)]
        async with aclosing(service.generate(ids, params, request_id=name, priority=priority, cache_salt=salt)) as deltas:
            async for delta in deltas:
                parts[delta.index].take(delta)
        return RequestOutput(
            request_id=name,
            prompt=text,
            prompt_token_ids=ids,
            outputs=[completion_output(part) for part in parts],
            num_cached_tokens=max(part.num_cached_tokens for part in parts),
        )

    async def _deltas(
        self, ids: list[int], params: SamplingParams | None, name: str | None, priority: int, salt: str
    ) -> AsyncGenerator[CompletionDelta, None]:
        service = self._open()
        name, params = name or self._next_name(), params or default_params(service.card)
        async with aclosing(service.generate(ids, params, request_id=name, priority=priority, cache_salt=salt)) as deltas:
            async for delta in deltas:
                yield completion_delta(delta)

    def _next_name(self) -> str:
        return f"request-{next(self._numbers)}"
