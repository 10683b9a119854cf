"""What runs in a benchmark's child processes: load a model, then do what the parent's lines say, one answer a line.

A child waits on its standard input while the other one computes, so that the two never run at once.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from core.bench.report import ANOTHER

Prompt = list[int]
COMPUTED = "a step's operations are computed by "


@dataclass(frozen=True)
class Generated:
    """``first_seconds``: until every sequence had a token; ``rest_seconds``: from then to the end, for ``rest_tokens``."""

    first_seconds: float
    rest_seconds: float
    rest_tokens: int
    token_ids: list[list[int]]


class Contestant(ABC):
    versions: dict[str, str]

    @abstractmethod
    def generate(self, prompts: Sequence[Prompt], length: int) -> Generated:
        """Greedily, ``length`` tokens each, all prompts at once, end tokens ignored."""

    @abstractmethod
    def next_token(self, prompts: Sequence[Prompt], top: int) -> list[dict[int, float]]:
        """The log-probabilities of the likeliest tokens that could follow each prompt."""


@contextmanager
def heard(name: str) -> Iterator[list[str]]:
    """What is logged meanwhile under this name: how a backend says which of its kernels compute."""
    said: list[str] = []
    handler, log = logging.Handler(), logging.getLogger(name)
    handler.emit = lambda record: said.append(record.getMessage().removeprefix(COMPUTED))  # type: ignore[method-assign]
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield said
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


class Dovetail(Contestant):
    def __init__(self, argv: list[str]) -> None:
        from core.compose import compose
        from core.compose.build import build_engine, fetched

        plan = compose(argv)
        with heard("dovetail.compute") as said:
            self._engine = build_engine(fetched(plan))
        self._runs = 0
        self.versions = {"composed of": " ".join(plan.plugins), "kernels": "; ".join(said)}

    def _run(self, prompts: Sequence[Prompt], length: int, logprobs: int | None = None) -> tuple[Generated, list[Any]]:
        from core.interfaces.request import Request, SamplingParams

        self._runs += 1
        params = SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True, logprobs=logprobs)
        tokens: dict[str, list[int]] = {f"{self._runs}-{number}": [] for number in range(len(prompts))}
        ids = list(tokens)
        found: dict[str, Any] = {}
        missing = len(prompts)
        began = perf_counter()
        first = last = began
        with_first = 0
        for request_id, prompt in zip(ids, prompts, strict=True):
            self._engine.add(Request(request_id=request_id, prompt_token_ids=prompt, params=params))
        while self._engine.has_work:
            for event in self._engine.step():
                if event.error:
                    raise RuntimeError(event.error)
                row = tokens[event.request_id]
                missing -= not row and bool(event.token_ids)
                row += event.token_ids
                if event.logprobs:
                    found.setdefault(event.request_id, event.logprobs[0])
            last = perf_counter()
            if missing == 0 and with_first == 0:
                first, with_first = last, sum(map(len, tokens.values()))
        rest = sum(map(len, tokens.values())) - with_first
        generated = Generated(first - began, last - first, rest, [tokens[request_id] for request_id in ids])
        return generated, [found.get(request_id) for request_id in ids]

    def generate(self, prompts: Sequence[Prompt], length: int) -> Generated:
        return self._run(prompts, length)[0]

    def next_token(self, prompts: Sequence[Prompt], top: int) -> list[dict[int, float]]:
        _, found = self._run(prompts, 1, logprobs=top)
        return [dict(zip(each.top_ids, each.top_logprobs, strict=True)) for each in found]


class Transformers(Contestant):
    def __init__(self, folder: str, dtype: str, threads: int) -> None:
        import torch
        import transformers

        if threads:
            torch.set_num_threads(threads)
        transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        self._torch = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        self._model = model.to(self._device).eval()
        self._model.generation_config.eos_token_id = None
        self._model.generation_config.pad_token_id = 0
        self.versions = {"transformers": transformers.__version__, "torch": torch.__version__}

    def _now(self) -> float:
        if self._device == "cuda":
            self._torch.cuda.synchronize()
        return perf_counter()

    def generate(self, prompts: Sequence[Prompt], length: int) -> Generated:
        torch = self._torch
        times: list[float] = []

        def note(input_ids: Any, scores: Any, **_: Any) -> Any:
            times.append(self._now())
            return torch.zeros(len(prompts), dtype=torch.bool, device=self._device)

        began = self._now()
        inputs = torch.tensor(prompts, device=self._device)
        with torch.inference_mode():
            output = self._model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                do_sample=False,
                max_new_tokens=length,
                stopping_criteria=[note],
            )
        rows = output[:, inputs.shape[1] :].tolist()
        return Generated(times[0] - began, times[-1] - times[0], len(prompts) * (len(times) - 1), rows)

    def next_token(self, prompts: Sequence[Prompt], top: int) -> list[dict[int, float]]:
        torch = self._torch
        likeliest = []
        for prompt in prompts:
            with torch.inference_mode():
                logits = self._model(torch.tensor([prompt], device=self._device), logits_to_keep=1).logits[0, -1]
            values, ids = torch.log_softmax(logits.float(), -1).topk(top)
            likeliest.append(dict(zip(ids.tolist(), values.tolist(), strict=True)))
        return likeliest


def _contestant(kind: str, options: dict[str, Any]) -> Contestant:
    match kind:
        case "dovetail":
            return Dovetail(**options)
        case _ if kind.startswith(ANOTHER):
            return Dovetail(**options)
        case "transformers":
            return Transformers(**options)
        case _:
            from core.bench.llama_cpp import LlamaCpp

            return LlamaCpp(**options)


def serve(kind: str, options: dict[str, Any]) -> None:
    """The child's life. Its standard output is the protocol's alone; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(**content: Any) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    contestant = _contestant(kind, options)
    answer(versions=contestant.versions)
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["do"] == "generate":
            made = contestant.generate(asked["prompts"], asked["length"])
            answer(first=made.first_seconds, rest=made.rest_seconds, rest_tokens=made.rest_tokens, token_ids=made.token_ids)
        elif asked["do"] == "next_token":
            rows = contestant.next_token(asked["prompts"], asked["top"])
            answer(likeliest=[list(row.items()) for row in rows])
        else:
            answer(peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == "__main__":
    serve(sys.argv[1], json.loads(sys.argv[2]))
