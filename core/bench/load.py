"""Load on a server: many clients that stream chats at once, some of whom hang up midway.

``python -m core.bench.load --url http://127.0.0.1:8000 --clients 64 --seconds 60 --disconnect 0.34``
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from core.bench import files
from core.errors import ExitCode, Problem, UserError

WORDS = (
    "river",
    "stone",
    "bread",
    "winter",
    "engine",
    "letter",
    "garden",
    "copper",
    "window",
    "market",
    "silver",
    "music",
    "paper",
)
PERCENTILES = (50, 90, 99)
PAUSE = 0.05  # seconds after an error: a server that refuses at once is not to be hammered


@dataclass(frozen=True)
class LoadOptions:
    """``disconnect`` is the share of clients that hang up on each of their answers, after a random number of chunks.

    Nobody begins a request after ``seconds``; one that takes longer than ``patience`` counts as stuck.
    """

    url: str = "http://127.0.0.1:8000"
    model: str | None = None
    clients: int = 64
    seconds: float = 60.0
    disconnect: float = 0.0
    prompt_words: int = 40
    max_tokens: int = 64
    temperature: float = 0.8
    patience: float = 120.0
    seed: int = 0


@dataclass
class Tally:
    """What the clients saw. Tokens are those of the answers' usage; an answer that was hung up on has none.

    ``refused`` were told to come again later (429), and did.
    """

    completed: int = 0
    hung_up: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    first_token: list[float] = field(default_factory=list)  # seconds from sending a request to its first text
    per_token: list[float] = field(default_factory=list)  # seconds between the tokens after the first, one mean an answer
    whole: list[float] = field(default_factory=list)
    finish_reasons: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class LoadReport:
    options: LoadOptions
    seconds: float
    tally: Tally

    @property
    def output_per_second(self) -> float:
        return self.tally.output_tokens / self.seconds

    def percentiles(self, values: Sequence[float]) -> dict[int, float]:
        if not values:
            return {}
        return {which: float(value) for which, value in zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True)}

    def as_json(self) -> str:
        tally = self.tally
        timings = {name: self.percentiles(getattr(tally, name)) for name in ("first_token", "per_token", "whole")}
        counts = {name: value for name, value in vars(tally).items() if name not in timings}
        content = {"options": asdict(self.options), "seconds": self.seconds, **counts, "percentiles": timings}
        return json.dumps({**content, "output_per_second": self.output_per_second}, indent=1)


class _BadAnswerError(Exception):
    """The server's answer was no good; the text is counted."""


class _RefusedError(Exception):
    """The server takes no more at the moment; ``seconds`` are those of its Retry-After."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


async def run_load(options: LoadOptions) -> LoadReport:
    import httpx

    tally = Tally()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=options.clients)
    async with httpx.AsyncClient(base_url=options.url, limits=limits, timeout=options.patience) as http:
        model = options.model
        if model is None:
            try:
                answer = await http.get("/v1/models")
                answer.raise_for_status()
                model = answer.json()["data"][0]["id"]
            except (httpx.HTTPError, LookupError, ValueError) as error:
                what = f"{options.url}/v1/models names no model: {error or type(error).__name__}"
                raise UserError(Problem(what, "--url", ("start the server first",)), exit_code=ExitCode.FAILED) from error
        began = perf_counter()
        until = began + options.seconds
        hanging_up = round(options.clients * options.disconnect)
        clients = [
            _Client(http, options, model, random.Random(options.seed * 100_003 + number), number < hanging_up, tally)
            for number in range(options.clients)
        ]
        async with asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(client.go_on(until))
        return LoadReport(options, perf_counter() - began, tally)


class _Client:
    def __init__(self, http: Any, options: LoadOptions, model: str, draw: random.Random, hangs_up: bool, tally: Tally) -> None:
        self._http = http
        self._options = options
        self._model = model
        self._draw = draw
        self._hangs_up = hangs_up
        self._tally = tally

    async def go_on(self, until: float) -> None:
        import httpx

        while perf_counter() < until:
            try:
                async with asyncio.timeout(self._options.patience):
                    await self._chat()
            except TimeoutError:
                self._tally.errors[f"stuck for {self._options.patience:g} s"] += 1
            except _RefusedError as later:
                self._tally.refused += 1
                await asyncio.sleep(min(later.seconds, max(0.0, until - perf_counter())))
            except _BadAnswerError as error:
                self._tally.errors[str(error)] += 1
                await asyncio.sleep(PAUSE)
            except httpx.HTTPError as error:
                self._tally.errors[type(error).__name__] += 1
                await asyncio.sleep(PAUSE)

    def _body(self) -> dict[str, Any]:
        words = " ".join(self._draw.choices(WORDS, k=max(1, self._draw.randint(1, self._options.prompt_words))))
        return {
            "model": self._model,
            "messages": [{"role": "user", "content": f"Tell me a story with these words: {words}"}],
            "max_tokens": self._options.max_tokens,
            "temperature": self._options.temperature,
            "seed": self._draw.randrange(2**31),
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    async def _chat(self) -> None:
        tally = self._tally
        hang_up_after = self._draw.randint(1, max(1, self._options.max_tokens // 2)) if self._hangs_up else None
        sent = perf_counter()
        first = last = None
        usage: dict[str, Any] | None = None
        finish_reason, done, chunks = None, False, 0
        async with self._http.stream("POST", "/v1/chat/completions", json=self._body()) as answer:
            if answer.status_code == 429 and (wait := answer.headers.get("retry-after", "")).isdecimal():
                raise _RefusedError(float(wait))
            if answer.status_code != 200:
                raise _BadAnswerError(f"HTTP {answer.status_code}")
            async for line in answer.aiter_lines():
                if not line.startswith("data:"):
                    continue
                data = line[5:].strip()
                if data == "[DONE]":
                    done = True
                    continue
                chunk = _chunk(data)
                usage = chunk.get("usage") or usage
                for choice in chunk["choices"]:
                    finish_reason = choice.get("finish_reason") or finish_reason
                    if choice["delta"].get("content"):
                        last = perf_counter()
                        first = first or last
                        chunks += 1
                if hang_up_after is not None and chunks >= hang_up_after:
                    tally.hung_up += 1
                    return  # leaving the stream closes the connection
        if not done or usage is None or finish_reason is None:
            raise _BadAnswerError("the stream ended early")
        tally.completed += 1
        tally.prompt_tokens += usage["prompt_tokens"]
        tally.output_tokens += usage["completion_tokens"]
        tally.finish_reasons[finish_reason] += 1
        tally.whole.append(perf_counter() - sent)
        if first is not None and last is not None:
            tally.first_token.append(first - sent)
            if usage["completion_tokens"] > 1:
                tally.per_token.append((last - first) / (usage["completion_tokens"] - 1))


def _chunk(data: str) -> dict[str, Any]:
    try:
        chunk = json.loads(data)
    except ValueError:
        chunk = None
    if not isinstance(chunk, dict):
        raise _BadAnswerError("a chunk of the stream is no JSON object")
    if "error" in chunk:
        raise _BadAnswerError(f"error in the stream: {chunk['error']}"[:200])
    if not isinstance(chunk.get("choices"), list):
        raise _BadAnswerError("a chunk of the stream has no choices")
    return chunk


def show(report: LoadReport, console: Console) -> None:
    tally, options = report.tally, report.options
    console.print(f"{options.clients} clients for {report.seconds:.1f} s at {options.url}", highlight=False)
    console.print(
        f"{tally.completed} answers, {tally.hung_up} hung up on, {tally.refused} told to come again, "
        f"{sum(tally.errors.values())} errors",
        highlight=False,
    )
    console.print(
        f"{tally.output_tokens} tokens in whole answers, {report.output_per_second:.1f} tok/s; prompts {tally.prompt_tokens}",
        highlight=False,
    )
    table = Table()
    for column in ("ms", *(f"P{which}" for which in PERCENTILES)):
        table.add_column(column, justify="right")
    for name, values in (("first token", tally.first_token), ("per token", tally.per_token), ("whole answer", tally.whole)):
        found = report.percentiles(values)
        table.add_row(name, *(f"{found[which] * 1000:.1f}" if found else "" for which in PERCENTILES))
    console.print(table)
    for error, count in tally.errors.most_common():
        console.print(f"{count} x {error}", style="red", highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    default = LoadOptions()
    parser = argparse.ArgumentParser(prog="python -m core.bench.load", description="Streaming chats from many clients at once.")
    parser.add_argument("--url", default=default.url, help="(default: %(default)s)")
    parser.add_argument("--model", help="default: the first that the server names")
    parser.add_argument("--clients", type=int, default=default.clients, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=default.seconds, help="no request begins later (default: %(default)s)")
    parser.add_argument("--disconnect", type=float, default=default.disconnect, help="share of clients that hang up midway")
    parser.add_argument("--prompt-words", type=int, default=default.prompt_words, help="at most (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=default.max_tokens, help="of an answer (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=default.temperature, help="(default: %(default)s)")
    parser.add_argument(
        "--patience", type=float, default=default.patience, help="seconds an answer may take (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--json", metavar="FILE", help="write everything measured there")
    known = vars(parser.parse_args(argv))
    file = known.pop("json")
    try:
        files.checked(json=file)
        report = asyncio.run(run_load(LoadOptions(**known)))
        show(report, Console())
        if file:
            files.write("--json", Path(file), report.as_json() + "\n")
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return ExitCode.FAILED if report.tally.errors else ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
