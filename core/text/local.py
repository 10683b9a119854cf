"""What ``service`` is for front ends, for a caller in the engine's own process: synchronous, many prompts at a time."""

from __future__ import annotations

import itertools
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import EngineDeadError, RequestError
from core.interfaces.engine import EngineLike
from core.interfaces.frontend import ChatTemplate, ModelCard, Pooling, TextDelta, TokenInfo, Tokenizer
from core.interfaces.request import EngineStats, FinishReason, Request, SamplingParams, TokenEvent
from core.text.assembler import TextAssembler
from core.text.service import continuations, of_length_one

QUEUE_FULL = 429


@dataclass
class Continuation:
    """One finished continuation of a prompt."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenInfo] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    num_cached_tokens: int = 0
    error: str = ""

    def take(self, delta: TextDelta) -> None:
        self.text += delta.text
        self.token_ids += delta.token_ids
        if delta.logprobs is not None:
            if self.logprobs is None:
                self.logprobs = []
            self.logprobs += delta.logprobs
        self.finish_reason = delta.finish_reason
        self.stop_reason = delta.stop_reason
        self.num_cached_tokens = delta.num_cached_tokens
        self.error = delta.error


class LocalService:
    def __init__(
        self,
        engine: EngineLike,
        tokenizer: Tokenizer,
        chat_template: ChatTemplate | None,
        card: ModelCard,
    ) -> None:
        self.card = card
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self._engine = engine
        self._batches = itertools.count()
        self._closed = False

    def generate(
        self, jobs: Sequence[tuple[Sequence[int], SamplingParams]], on_finished: Callable[[int], None] | None = None
    ) -> list[list[Continuation]]:
        """Run every (prompt ids, params); ``on_finished`` is told the number of each job as it is done.

        Ctrl-C ends what runs between two steps, so that the engine can be used again.

        :raises RequestError: naming the job; before anything has run, but for a grammar, which is read when its turn comes.
        """
        if self._closed:
            raise EngineDeadError("this LLM has been shut down")
        for number, (prompt, params) in enumerate(jobs):
            try:
                self._engine.limits.check(prompt, params)
            except RequestError as error:
                raise of_prompt(number, error) from None
        batch = _Batch(self._engine, self.tokenizer, jobs, next(self._batches), on_finished)
        with _interrupts_wait() as interrupted:
            try:
                while batch.unfinished and not interrupted.is_set():
                    batch.advance()
            finally:
                batch.abort()
        return batch.results

    def embed(self, prompts: Sequence[Sequence[int]], *, pooling: Pooling = "last") -> list[list[float]]:
        """As ``Service.embed``, one vector a prompt. :raises RequestError: naming the prompt."""
        if self._closed:
            raise EngineDeadError("this LLM has been shut down")
        states = []
        for number, prompt in enumerate(prompts):
            try:
                states.append(of_length_one(self._state(list(prompt), pooling)))
            except RequestError as error:
                raise of_prompt(number, error) from None
        return states

    def _state(self, prompt: list[int], pooling: Pooling) -> NDArray[np.float32]:
        name = f"read {next(self._batches)}"
        request = Request(request_id=name, prompt_token_ids=prompt, params=SamplingParams(max_tokens=1), read=pooling)
        self._engine.add(request)
        try:
            while self._engine.has_work:
                self._engine.step()
                for answer in self._engine.answers():
                    if answer.error is not None:
                        raise answer.error
                    if answer.state is not None:
                        return answer.state
        finally:
            self._engine.abort(name)
        raise EngineDeadError("the engine stopped working on a prompt it had accepted")

    def stats(self) -> EngineStats:
        return self._engine.stats()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._engine.close()


class _Batch:
    def __init__(
        self,
        engine: EngineLike,
        tokenizer: Tokenizer,
        jobs: Sequence[tuple[Sequence[int], SamplingParams]],
        batch: int,
        on_finished: Callable[[int], None] | None,
    ) -> None:
        self._engine = engine
        self._on_finished = on_finished
        self.results = [[Continuation(index) for index in range(params.n)] for _, params in jobs]
        self._left = [params.n for _, params in jobs]
        self._waiting: deque[tuple[Request, int, int]] = deque()
        self._running: dict[str, tuple[TextAssembler, int, int]] = {}
        self._tokenizer = tokenizer
        for number, (prompt, params) in enumerate(jobs):
            for index, request in enumerate(continuations(f"{batch}.{number}", prompt, params)):
                self._waiting.append((request, number, index))

    @property
    def unfinished(self) -> bool:
        return bool(self._waiting or self._running)

    def advance(self) -> None:
        self._fill()
        events = self._engine.step()
        for answer in self._engine.answers():
            found = self._running.pop(answer.request_id, None)
            if found is not None and answer.error is not None:
                raise of_prompt(found[1], answer.error)
        if not events and not self._engine.has_work:
            raise EngineDeadError("the engine stopped working on requests it had accepted")
        for event in events:
            self._take(event)

    def abort(self) -> None:
        """End what was left unfinished, by Ctrl-C or by an error."""
        self._waiting.clear()
        for request_id in list(self._running):
            self._engine.abort(request_id)
        self._running.clear()

    def _fill(self) -> None:
        """Hand the engine as many requests as its queue takes."""
        while self._waiting:
            request, number, index = self._waiting[0]
            try:
                self._engine.add(request)
            except RequestError as error:
                if error.status == QUEUE_FULL and self._running:
                    return
                raise of_prompt(number, error) from None
            self._waiting.popleft()
            assembler = TextAssembler(
                self._tokenizer, request.params, index=index, num_prompt_tokens=len(request.prompt_token_ids)
            )
            self._running[request.request_id] = (assembler, number, index)

    def _take(self, event: TokenEvent) -> None:
        found = self._running.get(event.request_id)
        if found is None:
            return  # late: it was aborted
        assembler, number, index = found
        delta = assembler.feed(event)
        self.results[number][index].take(delta)
        if delta.finish_reason is None:
            return
        del self._running[event.request_id]
        if event.finish_reason is None:
            self._engine.abort(event.request_id)  # a stop string: the engine knows no text and would go on
        self._left[number] -= 1
        if not self._left[number] and self._on_finished is not None:
            self._on_finished(number)


def of_prompt(number: int, error: RequestError) -> RequestError:
    """The same error, naming the prompt of a list that it is about."""
    return RequestError(f"prompt {number}: {error.message}", param=error.param, code=error.code, status=error.status)


@contextmanager
def _interrupts_wait() -> Iterator[threading.Event]:
    """Ctrl-C sets the event; what it usually does happens on leaving. A second one does it at once."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted  # signals reach the main thread only
        return
    usual = signal.getsignal(signal.SIGINT)
    if not callable(usual):
        yield interrupted
        return

    def note(number: int, frame: Any) -> None:
        if interrupted.is_set():
            usual(number, frame)
        interrupted.set()

    signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, usual)
    if interrupted.is_set():
        usual(signal.SIGINT, None)
