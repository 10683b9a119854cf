"""A tiny engine: continues a prompt by counting up from its last token. Runs in real child processes."""

import os
import signal
import time
from dataclasses import dataclass

import numpy as np

from core.errors import Problem, RequestError, UserError
from core.interfaces.engine import Answer, UnderWay
from core.interfaces.limits import RequestLimits
from core.interfaces.request import EngineStats, Request, TokenEvent, TokenLogprobs

VOCAB = 1000
BREAKS = 900  # a prompt beginning with one of these makes the next step ...
BLOCKS = 901
DIES = 902
REFUSED = 903  # ... or the adding fail
CLUMSY = 904
FAILS = 905
HOLDS = 906  # until somebody has opened the gate for writing, and closed it


@dataclass
class Setup:
    """What the builder is told. ``marker``: a file made by the first life, where each later one fails."""

    step_seconds: float = 0.0
    max_waiting: int = 10_000
    build: str = "well"  # "user error", "crash", "die", "block"
    marker: str = ""
    at_once: int | None = None
    gate: str = ""


def build(setup):
    if setup.marker:
        if os.path.exists(setup.marker):
            raise UserError.of("the model has vanished meanwhile", "--model")
        with open(setup.marker, "w"):
            pass
    if setup.build == "user error":
        raise UserError(Problem("no such model", "--model", ("name another",)), Problem("no such device", "--device"))
    if setup.build == "crash":
        raise ZeroDivisionError("the builder broke")
    if setup.build == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if setup.build == "block":
        print("loading", flush=True)
        time.sleep(600)
    return FakeEngine(setup)


class NotPickledBack:
    """Its pickle can be made, but not read."""

    def __reduce__(self):
        return (int, ("no number",))


class FakeEngine:
    def __init__(self, setup=None):
        self.setup = setup or Setup()
        self.running = {}  # request id -> (request, number of tokens so far)
        self.read = []  # requests that are not answered yet
        self.finished = {}
        self.steps = 0
        self.began = 0.0
        self.closed = False
        self.limits = RequestLimits(max_model_len=10_000, vocab=VOCAB, at_once=None if setup is None else setup.at_once)

    @property
    def has_work(self):
        return bool(self.running or self.read)

    def add(self, request: Request):
        first = request.prompt_token_ids[0]
        if len(self.running) >= self.setup.max_waiting:
            raise RequestError("the queue is full: try again later", code="queue_full", status=429)
        if first == REFUSED or (first == CLUMSY and request.params.seed == 12):
            raise RequestError("nobody wants this", param="prompt", code="refused")
        if first == CLUMSY and request.params.seed is None and not request.read:
            raise KeyError("a bug in add")
        assert request.request_id not in self.running
        if request.read:
            if first == CLUMSY:
                raise KeyError("a bug in reading")
            self.read.append(request)
            return
        self.running[request.request_id] = (request, 0)

    @property
    def under_way(self):
        return UnderWay(self.began, len(self.running), 7) if self.began else None

    def abort(self, request_id):
        if self.running.pop(request_id, None) is None:
            return False
        self._count("abort")
        return True

    def step(self):
        self.steps += 1
        self.began = time.monotonic()
        events = self._step()
        self.began = 0.0
        return events

    def _step(self):
        if self.setup.step_seconds:
            time.sleep(self.setup.step_seconds)
        events = []
        for request_id, (request, done) in list(self.running.items()):
            first = request.prompt_token_ids[0]
            if first == BREAKS:
                raise ZeroDivisionError("the step broke")
            if first == BLOCKS:
                time.sleep(600)
            if first == HOLDS and done == 0:
                with open(self.setup.gate) as gate:
                    gate.read()
            if first == DIES or request.cache_salt == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1
            token = (request.prompt_token_ids[-1] + done) % VOCAB
            limit = request.params.max_tokens
            reason = "error" if first == FAILS else "length" if limit is not None and done >= limit else None
            logprobs = None
            if request.params.logprobs is not None:
                logprobs = [
                    TokenLogprobs(
                        -0.5, 1, [token + 1, token][: request.params.logprobs], [-0.25, -0.5][: request.params.logprobs]
                    )
                ]
            error = "the numbers went wrong" if reason == "error" else ""
            events.append(TokenEvent(request_id, [token], reason, logprobs=logprobs, num_cached_tokens=3, error=error))
            if reason is None:
                self.running[request_id] = (request, done)
            else:
                del self.running[request_id]
                self._count(reason)
        return events

    def answers(self):
        """States are 3 and 4, or with the mean 4 and 3. A token is as unlikely as it is far from the beginning."""
        answers = []
        for request in self.read:
            most, places = request.params.logprobs or 0, range(1, len(request.prompt_token_ids))
            if request.read == "likelihoods":
                logprobs = [TokenLogprobs(-float(place), 0, [7] * most, [-0.5] * most) for place in places]
                answers.append(Answer(request.request_id, logprobs=logprobs))
            else:
                state = np.array([4, 3] if request.read == "mean" else [3, 4], np.float32)
                answers.append(Answer(request.request_id, state=state))
        self.read = []
        return answers

    def _count(self, reason):
        self.finished[reason] = self.finished.get(reason, 0) + 1

    def check(self):
        pass

    def stats(self):
        return EngineStats(num_running=len(self.running), requests_finished=dict(self.finished), steps=self.steps)

    def close(self):
        self.closed = True


class LetterTokenizer:
    """Token id i is the character i + 65 ("A" is 0), so that texts can be told from ids."""

    vocab_size = VOCAB
    eos_token_ids = (VOCAB - 1,)
    bos_token_id = None
    special_ids = frozenset({VOCAB - 1})

    def encode(self, text, *, add_special_tokens=True):
        return [ord(character) - 65 for character in text]

    def decode(self, ids, *, skip_special_tokens=True):
        return "".join(self.token_text(token) for token in ids)

    def token_text(self, token_id):
        return chr(token_id + 65)

    def token_bytes(self, token_id):
        return self.token_text(token_id).encode()
