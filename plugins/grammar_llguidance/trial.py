"""Grammars are tried in a process of their own first: preparing one may take for ever, or end the process.

A handful of patterns that must all match can cost more than any machine has, and nothing stops the library once it has begun.
What the trial does not survive within its share of processor time never reaches the engine.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import weakref
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLMatcher

NICE = 10  # the engine has the processor first
SECONDS = 0.5  # of processor time, so that a machine that is busy refuses nothing more
REMEMBERED = 64  # grammars


class Trials:
    def __init__(self, max_grammar_size: int) -> None:
        self._max_grammar_size = max_grammar_size
        self._process: subprocess.Popen[bytes] | None = None
        self._farewell: weakref.finalize[[subprocess.Popen[bytes]], Trials] | None = None
        self.trouble = lru_cache(REMEMBERED)(self._trouble)

    def _trouble(self, grammar: str) -> str:
        """What is wrong with a grammar that is written as the library reads it; empty when nothing is."""
        process = self._process or self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(grammar).encode() + b"\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = b""
        if answer:
            return str(json.loads(answer))
        self._process = None
        if self._farewell is not None:
            self._farewell.detach()
        _close(process)
        ended = process.wait()
        if ended == -signal.SIGPROF:
            return f"it takes more than {SECONDS:g} s to prepare"
        return "preparing it broke the library"

    def _started(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", __file__, json.dumps(sys.path), str(self._max_grammar_size)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._farewell = weakref.finalize(self, _end, self._process)
        return self._process


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):  # what was not written any more
                pipe.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    _close(process)
    process.kill()
    process.wait()


def main() -> None:
    """Answers each line, a grammar, with what is wrong with it. Ends with its input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal signals everyone; the end of the input is what ends this
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    os.nice(NICE)
    sys.path[:] = json.loads(sys.argv[1])
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

    limits = LLParserLimits(max_grammar_size=int(sys.argv[2]), verbose_errors=False)
    tokenizer = LLTokenizer(TokenizerWrapper(_Bytes()), 257, [256])
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        trouble = _begun(LLMatcher(tokenizer, json.loads(line), log_level=0, limits=limits))
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(json.dumps(trouble) + "\n")
        sys.stdout.flush()


def _begun(matcher: LLMatcher) -> str:
    """What comes of the first byte, where there are few: an object's brace, behind which all of its fields may follow."""
    if not matcher.is_error():
        mask = matcher.compute_bitmask()
        may = [byte for byte in range(256) if mask[byte // 8] >> byte % 8 & 1]
        if len(may) == 1:
            matcher.consume_token(may[0])
    return matcher.get_error()


class _Bytes:
    """The smallest vocabulary there is: what a grammar costs depends little on the model's."""

    tokens = [bytes([byte]) for byte in range(256)] + [b"<end>"]
    special_token_ids = (256,)
    eos_token_id = 256
    bos_token_id = None

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


if __name__ == "__main__":
    main()
