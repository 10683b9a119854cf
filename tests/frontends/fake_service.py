"""A service that answers from a script, so that the doors can be tested without an engine.

One character is one token. A request's ``cache_salt`` says how its answer misbehaves: "delay=0.01 chunk=5 hold_after=3".
As a program it serves itself through the HTTP front end, tells what happens to requests on stdout, and dies on SIGUSR1.
"""

import asyncio
import json
import logging
import signal
import sys

from core.errors import EngineDeadError, RequestError
from core.interfaces.frontend import Health, ModelCard, Service, TextDelta, TokenInfo, TopToken
from core.interfaces.request import EngineStats

ANSWER = "Paris is the capital of France."
BOS, EOS = 1, 0


class FakeTokenizer:
    vocab_size = 0x110000
    eos_token_ids = (EOS,)
    bos_token_id = BOS
    special_ids = frozenset({BOS, EOS})

    def encode(self, text, *, add_special_tokens=True):
        return [BOS] * add_special_tokens + [ord(char) for char in text]

    def decode(self, ids, *, skip_special_tokens=True):
        return "".join(chr(token) for token in ids if not (skip_special_tokens and token in self.special_ids))

    def token_text(self, token_id):
        return chr(token_id)

    def token_bytes(self, token_id):
        return chr(token_id).encode()


class FakeTemplate:
    def render(self, messages, *, add_generation_prompt=True, **kwargs):
        if messages[0]["role"] == "assistant":
            raise RequestError("a conversation cannot begin with the assistant")
        text = "".join(f"{message['role']}: {message['content']}\n" for message in messages)
        return text + ("assistant: " if add_generation_prompt else "")


class FakeService(Service):
    def __init__(self, *, served_names=("fake",), defaults=None, chat=True, answer=ANSWER, tell=lambda line: None):
        self.card = ModelCard(
            name="models/fake-1b",
            served_names=tuple(served_names),
            max_model_len=500,
            vocab=FakeTokenizer.vocab_size,
            created=1_700_000_000,
            defaults=defaults or {},
        )
        self.tokenizer = FakeTokenizer()
        self.chat_template = FakeTemplate() if chat else None
        self.answer = answer
        self.tell = tell
        self.requests = []  # (request_id, prompt ids, params, priority, cache_salt)
        self.running = set()
        self.aborted = []
        self.held = 0  # answers that have come to their "hold_after"
        self.ending = {}  # by request id: set when an operator ends it
        self.draining = False
        self.dead_because = ""
        self.stats_hang = False
        self.ends_as = "length"  # an answer that is longer than it may be
        self._dead = asyncio.Event()

    def die(self, reason):
        self.dead_because = reason
        self._dead.set()

    async def generate(self, prompt_token_ids, params, *, request_id, priority=0, cache_salt=""):
        script = dict(each.split("=") for each in cache_salt.split())
        self.requests.append((request_id, list(prompt_token_ids), params, priority, cache_salt))
        if "refuse" in script:
            raise RequestError("the queue is full", status=int(script["refuse"]))
        if "break" in script:
            raise ZeroDivisionError("a secret of the implementation")
        if self.draining:
            raise RequestError("not now", status=503)
        self.running.add(request_id)
        self.ending[request_id] = asyncio.Event()
        self.tell(f"started {request_id}")
        try:
            async for delta in self._deltas(list(prompt_token_ids), params, script, self.ending[request_id]):
                yield delta
            self.tell(f"finished {request_id}")
        except (asyncio.CancelledError, GeneratorExit):
            self.aborted.append(request_id)
            self.tell(f"aborted {request_id}")
            raise
        finally:
            self.running.discard(request_id)

    async def _deltas(self, prompt, params, script, ending):
        answer, finish, reason = self.answer * int(script.get("times", 1)), "stop", None
        for stop in params.stop:
            if stop in answer:
                answer, reason = answer[: answer.index(stop)], stop
        if params.max_tokens is not None and len(answer) > params.max_tokens:
            answer, finish, reason = answer[: params.max_tokens], self.ends_as, None
        size = int(script.get("chunk", 1))
        pieces = [answer[at : at + size] for at in range(0, len(answer), size)]
        done = 0
        for number, piece in enumerate(pieces):
            if number == int(script.get("hold_after", -1)):
                self.held += 1
                await self._or_death(ending.wait())
            if ending.is_set():
                for index in range(params.n):
                    yield self._delta(index, "", prompt, done, params, "abort", None, "")
                return
            if number == int(script.get("error_after", -1)):
                yield self._delta(0, "", prompt, done, params, "error", None, "the kernel overflowed")
                return
            if number == int(script.get("break_after", -1)):
                raise ZeroDivisionError("a secret of the implementation")
            if number == int(script.get("die_after", -1)):
                self.die("killed by the script")
            await self._or_death(asyncio.sleep(float(script.get("delay", 0))))
            last = number == len(pieces) - 1 and "endless" not in script
            for index in range(params.n):
                yield self._delta(index, piece, prompt, done, params, finish if last else None, reason if last else None, "")
            done += len(piece)

    async def _or_death(self, waiting):
        waiting, dying = asyncio.ensure_future(waiting), asyncio.ensure_future(self._dead.wait())
        try:
            await asyncio.wait((waiting, dying), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            dying.cancel()
        if self._dead.is_set():
            raise EngineDeadError(self.dead_because)

    def _delta(self, index, text, prompt, done, params, finish, reason, error):
        infos = None
        if params.logprobs is not None:
            infos = tuple(
                TokenInfo(
                    token_id=ord(char),
                    text=char,
                    bytes=char.encode(),
                    logprob=-0.25,
                    rank=0,
                    top=tuple(
                        TopToken(ord(char) + rank, chr(ord(char) + rank), chr(ord(char) + rank).encode(), -0.25 - rank)
                        for rank in range(params.logprobs)
                    ),
                    text_offset=done + offset,
                )
                for offset, char in enumerate(text)
            )
        return TextDelta(
            index=index,
            text=text,
            token_ids=tuple(map(ord, text)),
            logprobs=infos,
            finish_reason=finish,
            num_prompt_tokens=len(prompt),
            num_generated_tokens=done + len(text),
            num_cached_tokens=2,
            stop_reason=reason,
            error=error,
        )

    async def embed(self, prompt_token_ids, *, pooling="last"):
        return [1.0, 0.0]

    async def abort(self, request_id):
        if request_id in self.running:
            self.ending[request_id].set()
        return request_id in self.running

    def health(self):
        return Health(alive=not self.dead_because, ready=not self.dead_because and not self.draining, detail=self.dead_because)

    async def stats(self):
        if self.stats_hang:
            await asyncio.Event().wait()
        if self.dead_because:
            raise EngineDeadError(self.dead_because)
        return EngineStats(
            num_running=len(self.running),
            pages_total=10,
            pages_free=6,
            pages_cached=1,
            prompt_tokens=7,
            generation_tokens=11,
            requests_finished={"stop": 3, "length": 1},
        )

    async def drain(self, timeout=None):
        self.draining = True
        self.tell("draining")
        end = asyncio.get_running_loop().time() + (timeout or 0)
        while self.running and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.01)

    async def wait_dead(self):
        await self._dead.wait()
        return self.dead_because


def main(options):
    from core.offers import Context
    from frontends.openai_http.plugin import create
    from frontends.openai_http.settings import HttpSettings

    def tell(line):
        print(line, flush=True)

    class Mortal(FakeService):
        async def wait_dead(self):
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self.die, "killed by a signal")
            return await super().wait_dead()

    handler = logging.StreamHandler()  # as the launcher does
    handler.setFormatter(logging.Formatter("%(levelname).1s %(name)s: %(message)s"))
    logging.getLogger("dovetail").addHandler(handler)
    section = HttpSettings(port=0, **options.get("section", {}))
    context = Context(section=section, settings={"drain_timeout": float(options.get("drain_timeout", 5.0))}, facts={})
    return create(context).run(Mortal(tell=tell, **options.get("service", {})))


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
