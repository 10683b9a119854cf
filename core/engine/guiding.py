"""Outputs of a given form: a matcher for each request that wants one, and its masks, computed beside the steps."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from core.errors import RequestError
from core.interfaces.grammar import GrammarBackend, Matcher
from core.interfaces.request import SamplingParams

log = logging.getLogger("dovetail.engine")

WORKERS = 2


class Guide:
    """The matcher of one request, and the mask of its next token, on its way or ready.

    ``error``: what was wrong when the matcher broke; its request ends with the next token, and nobody else's.
    """

    def __init__(self, matcher: Matcher, pool: ThreadPoolExecutor) -> None:
        self.error = ""
        self._matcher = matcher
        self._pool = pool
        self._mask: Future[NDArray[np.uint32]] = pool.submit(matcher.allowed)

    def mask(self) -> NDArray[np.uint32] | None:
        """None of a matcher that broke: everything is allowed."""
        broken = self._mask.exception()  # asked for, not raised: what a library in another language throws is found too
        if broken is None:
            return self._mask.result()
        if not self.error:
            self._break(broken)
        return None

    def accept(self, token: int) -> bool:
        """Whether the output is complete with this token. :raises ValueError: as the matcher does, or when it broke."""
        if self.mask() is not None:  # one thread at a time
            try:
                self._matcher.accept(token)
                if not self._matcher.done:
                    self._mask = self._pool.submit(self._matcher.allowed)
                return self._matcher.done
            except ValueError:
                raise
            except Exception as error:
                self._break(error)
        raise ValueError(self.error)

    def _break(self, error: BaseException) -> None:
        log.error("the grammar of a request broke", exc_info=error)
        self.error = f"the grammar broke: {type(error).__name__}: {error}"


class Guiding:
    def __init__(self, backend: GrammarBackend) -> None:
        self._backend = backend
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="grammar")

    def guide(self, params: SamplingParams) -> Guide | None:
        """:raises RequestError: for a grammar that cannot be had."""
        if params.grammar is None:
            return None
        if params.min_tokens:
            raise RequestError(
                "min_tokens cannot be had together with a grammar, which says where the output may end", param="min_tokens"
            )
        return Guide(self._backend.matcher(params.grammar), self._pool)

    def close(self) -> None:
        self._pool.shutdown()
