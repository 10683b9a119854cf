"""Outputs of a given form: a matcher for each request that wants one, made beside the steps, as are its masks.

No step waits for a grammar that is slow. A request is admitted when its matcher is made, and a row whose mask is late goes
without the step's token: it sits out until the mask is there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from core.errors import RequestError
from core.interfaces.grammar import GrammarBackend, Matcher
from core.interfaces.request import SamplingParams

log = logging.getLogger("dovetail.engine")

WORKERS = 2
PATIENCE = 0.005  # seconds that a step waits for its masks, all of them together
LONGEST = 10.0  # seconds for the mask of one token, the wait for a worker included; then the request ends

Mask = NDArray[np.uint32]


class Guide:
    """The matcher of one request, and the mask of its next token, on its way or ready.

    ``error``: what was wrong when the matcher broke; its request ends with the next token, and nobody else's.
    ``late``: the step that asked last went without the mask, so that its token says nothing.
    """

    def __init__(self, make: Callable[[], Matcher], vocab: int, makers: ThreadPoolExecutor, pool: ThreadPoolExecutor) -> None:
        self.error = ""
        self._words = -(-vocab // 32)
        self.late = False
        self._matcher: Matcher | None = None
        self._pool = pool
        self._since = monotonic()
        self._mask: Future[Mask] = makers.submit(self._begin, make)

    def _begin(self, make: Callable[[], Matcher]) -> Mask:
        matcher = make()
        self._since = monotonic()
        self._matcher = matcher
        return self._allowed(matcher)

    def _allowed(self, matcher: Matcher) -> Mask:
        mask = matcher.allowed()
        shape, kind = getattr(mask, "shape", None), getattr(mask, "dtype", None)
        if shape != (self._words,) or kind != np.uint32:
            what = f"{kind}{list(shape)}" if shape is not None else type(mask).__name__
            name = f"{type(matcher).__module__}.{type(matcher).__qualname__}"
            raise TypeError(f"allowed() of the grammar's matcher {name} gave {what} instead of uint32[{self._words}]")
        return mask

    @property
    def ready(self) -> bool:
        """Whether there is nothing to wait for: the matcher is made and the next token's mask computed, or that went wrong."""
        return self._mask.done() or self._overdue

    @property
    def refusal(self) -> Exception | None:
        """Of a guide that is ready: why no matcher could be made."""
        if self._matcher is not None:
            return None
        broken = self._mask.exception()
        return broken if isinstance(broken, Exception) else RuntimeError(f"{type(broken).__name__}: {broken}")

    @property
    def _overdue(self) -> bool:
        return self._matcher is not None and monotonic() - self._since > LONGEST

    def mask(self, until: float | None = None) -> Mask | None:
        """None, everything is allowed: of a matcher that broke, and of one that is ``late`` at this time (``monotonic``)."""
        if self.error:
            return None
        try:  # asked for, not raised: what a library in another language throws is found too
            broken = self._mask.exception(None if until is None else max(0.0, until - monotonic()))
        except TimeoutError:
            self.late = not self._overdue
            if not self.late:
                self.error = f"the grammar took more than {LONGEST:g} s to say what may come next"
            return None
        self.late = False
        if broken is None:
            return self._mask.result()
        self._break(broken)
        return None

    def accept(self, token: int) -> bool:
        """Whether the output is complete with this token. :raises ValueError: as the matcher does, or when it broke."""
        if self.mask() is not None and self._matcher is not None:  # one thread at a time
            try:
                self._matcher.accept(token)
                if not self._matcher.done:
                    self._since = monotonic()
                    self._mask = self._pool.submit(self._allowed, self._matcher)
                return self._matcher.done
            except ValueError:
                raise
            except Exception as error:
                self._break(error)
        raise ValueError(self.error)

    def forget(self) -> None:
        """Nobody wants it any more: what has not begun of it need not."""
        self._mask.cancel()

    def _break(self, error: BaseException) -> None:
        log.error("the grammar of a request broke", exc_info=error)
        self.error = "the grammar broke; the server's log has the cause"

    @staticmethod
    def wait_for_any(guides: Iterable[Guide], seconds: float) -> None:
        wait([guide._mask for guide in guides], seconds, FIRST_COMPLETED)


class Guiding:
    """Matchers are made by a thread of their own, one after the other: who waits for masks does not wait for these."""

    def __init__(self, backend: GrammarBackend, vocab: int) -> None:
        self._backend = backend
        self._vocab = vocab
        self._makers = ThreadPoolExecutor(1, thread_name_prefix="new grammar")
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="grammar")

    def guide(self, params: SamplingParams) -> Guide | None:
        """One that is not ready. :raises RequestError: for what no grammar can be had together with."""
        grammar = params.grammar
        if grammar is None:
            return None
        if params.min_tokens:
            raise RequestError(
                "min_tokens cannot be had together with a grammar, which says where the output may end", param="min_tokens"
            )
        return Guide(lambda: self._backend.matcher(grammar), self._vocab, self._makers, self._pool)

    def close(self) -> None:
        for pool in (self._makers, self._pool):
            pool.shutdown(cancel_futures=True)
