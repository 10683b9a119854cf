"""From a request to a sequence that may wait for a place: what is asked of it put into arrays, its grammar ready."""

from __future__ import annotations

import numpy as np

from core.engine.barring import Barred
from core.engine.guiding import Guide, Guiding
from core.engine.penalties import Seen
from core.engine.reading import Read
from core.engine.rows import Sequence
from core.engine.stop import banned_tokens, stop_tokens
from core.errors import RequestError
from core.interfaces.grammar import GrammarBackend
from core.interfaces.randomness import philox
from core.interfaces.request import Request, SamplingParams
from core.interfaces.scheduler import SchedulingPolicy

DRAWN = 256  # seeds at a time: one costs as much as all of them


class Arrivals:
    """``preparing``: sequences whose grammar is not ready, by request id; they wait, but in no queue."""

    def __init__(
        self,
        policy: SchedulingPolicy,
        grammars: GrammarBackend | None,
        *,
        context: int,
        eos_token_ids: tuple[int, ...],
        vocab: int,
        seed: int,
    ) -> None:
        self.preparing: dict[str, Sequence] = {}
        self._policy = policy
        self._guiding = None if grammars is None else Guiding(grammars, vocab)
        self._context = context
        self._eos = tuple(token for token in eos_token_ids if 0 <= token < vocab)
        self._seed = seed
        self._number = 0
        self._seeds: tuple[int, list[int]] = (-1, [])  # of the first of DRAWN requests, and of those behind it

    def take(self, request: Request) -> Sequence:
        """Its sequence, which is among the ``preparing`` if it waits for a grammar.

        :raises RequestError: where grammars are not to be had, or not with what else is asked.
        """
        sequence = self._sequence(request)
        self._number += 1
        if sequence.guide is not None:
            self.preparing[request.request_id] = sequence
        return sequence

    def ready(self) -> list[Sequence]:
        """Those that were preparing and are not any more. The guide of one that can never run says why."""
        ready = [each for each in self.preparing.values() if each.guide is None or each.guide.ready]
        for sequence in ready:
            del self.preparing[sequence.request_id]
        return ready

    def close(self) -> None:
        if self._guiding is not None:
            self._guiding.close()

    def _sequence(self, request: Request) -> Sequence:
        params = request.params
        prompt = np.array(request.prompt_token_ids, np.int32)
        stops = stop_tokens(params, self._eos)
        most = 0 if request.read else params.max_tokens
        seen = None
        if params.penalized:
            seen = Seen(prompt if params.repetition_penalty != 1.0 else prompt[:0])
        return Sequence(
            request_id=request.request_id,
            request=request,
            key=(self._policy.order(request), self._number),
            tokens=prompt,
            num_prompt=len(prompt),
            limit=self._context if most is None else len(prompt) + most,
            min_length=len(prompt) + params.min_tokens,
            seed=self._drawn_seed() if params.seed is None else params.seed % 2**64,
            stops=stops,
            stop_ids=np.array(sorted(stops), np.int32),
            banned=np.array(sorted(banned_tokens(params, self._eos)), np.int32),
            bias_tokens=np.array(list(params.logit_bias.keys()), np.int32),
            bias_values=np.array(list(params.logit_bias.values()), np.float32),
            seen=seen,
            guide=self._guide(params),
            read=Read(request) if request.read else None,
            barred=Barred.of(params),
        )

    def _guide(self, params: SamplingParams) -> Guide | None:
        if self._guiding is not None:
            return self._guiding.guide(params)
        if params.grammar is not None:
            raise RequestError(
                "outputs of a given form are not to be had: this server was composed without a grammar backend",
                param="grammar",
                code="unsupported_parameter",
            )
        return None

    def _drawn_seed(self) -> int:
        """The same for the n-th request of every engine with this seed, and unlike that of any other request."""
        place = self._number % DRAWN
        first = self._number - place
        if self._seeds[0] != first:
            words = philox(np.array([self._seed % 2**64], np.uint64), np.arange(first, first + DRAWN)).astype(np.uint64)
            self._seeds = (first, (words[:, 0] << np.uint64(32) | words[:, 1]).tolist())
        return self._seeds[1][place]
