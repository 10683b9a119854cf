"""Prompts that are read and not gone on with: for their hidden states, and for how likely each of their tokens is.

They are requests like others to the scheduler, but they decode nothing, and only the first of them has a place and pages. It
computes its next tokens between two steps of the others, so that these go on beside a prompt of any length.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from core.interfaces.compute import Sampled, SamplingRows, StepBatch
from core.interfaces.engine import Answer
from core.interfaces.request import Request, TokenLogprobs

LOGIT_ROWS = 128  # whose logits are in memory at the same time


class Reader(Protocol):
    """The part of ``core.engine.runner.Runner`` that prompts are read with."""

    def hidden_states(self, batch: StepBatch) -> NDArray[np.float32]: ...
    def likelihoods(self, batch: StepBatch, token_ids: NDArray[np.int64], most: int) -> Sampled: ...


class Read:
    """What has been found of one prompt so far. ``restart``: its pages are others', and it begins again."""

    def __init__(self, request: Request) -> None:
        self._request_id = request.request_id
        self._wanted = request.read
        self._most = request.params.logprobs or 0
        self._tokens = np.array(request.prompt_token_ids, np.int32)
        self._following = np.array([*request.prompt_token_ids[1:], 0], np.int64)
        self.restart()

    def restart(self) -> None:
        self._total: NDArray[np.float64] | float = 0.0
        self._found: list[TokenLogprobs] = []

    def advance(self, runner: Reader, pages: NDArray[np.int32], page_size: int, begin: int, most: int) -> int:
        """Compute at most so many tokens from ``begin`` on; where it ends."""
        end = min(begin + (min(most, LOGIT_ROWS) if self._wanted == "likelihoods" else most), len(self._tokens))
        positions = np.arange(begin, end, dtype=np.int32)
        if self._wanted == "last":
            rows = np.array([end - begin - 1] if end == len(self._tokens) else [], np.int64)
        else:
            rows = np.arange(end - begin, dtype=np.int64)
        batch = StepBatch(
            token_ids=self._tokens[begin:end],
            positions=positions,
            slots=pages[positions // page_size].astype(np.int64) * page_size + positions % page_size,
            query_starts=np.array([0, end - begin], np.int32),
            context_lens=np.array([end], np.int32),
            page_table=pages[None, : -(-end // page_size)],
            logit_rows=rows,
            num_decodes=0,
            sampling=_unsampled(len(rows)),
        )
        if self._wanted == "likelihoods":
            likely = runner.likelihoods(batch, self._following[begin:end], self._most)
            self._found += [logprobs_of(likely, row, self._most) for row in range(end - begin)]
        else:
            self._total = self._total + runner.hidden_states(batch).sum(0, dtype=np.float64)
        return end

    def answer(self) -> Answer:
        if self._wanted == "likelihoods":
            return Answer(self._request_id, logprobs=self._found[:-1])
        number = len(self._tokens) if self._wanted == "mean" else 1
        return Answer(self._request_id, state=np.asarray(self._total / number, np.float32))


def logprobs_of(sampled: Sampled, index: int, wanted: int) -> TokenLogprobs:
    """One row's entry; ``wanted`` of the likeliest tokens, though another row may have asked for more."""
    if sampled.logprobs is None or sampled.ranks is None or sampled.top_ids is None or sampled.top_logprobs is None:
        raise RuntimeError("a row asked for log-probabilities and the runner brought none")
    return TokenLogprobs(
        float(sampled.logprobs[index]),
        int(sampled.ranks[index]),
        sampled.top_ids[index, :wanted].tolist(),
        sampled.top_logprobs[index, :wanted].tolist(),
    )


def _unsampled(rows: int) -> SamplingRows:
    floats, ints = np.zeros(rows, np.float32), np.zeros(rows, np.int32)
    return SamplingRows(
        temperature=floats,
        top_k=ints,
        top_p=np.ones(rows, np.float32),
        min_p=floats,
        seeds=np.zeros(rows, np.uint64),
        positions=np.zeros(rows, np.int64),
        logprobs=np.full(rows, -1, np.int32),
        all_greedy=True,
    )
