"""``python -m core.bench.serving``: what the way through HTTP costs, beside the engine alone.

The same random prompts go to an engine in a process of its own, all at once, and to a server, a streaming client each. The two
take turns. Told are tokens a second, counted by the answers' usage, and the processor time that HTTP takes for each token,
in all of its processes (``--api-server-count``). Clients are divided among processes where there are cores to spare.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from time import perf_counter
from urllib.parse import urlsplit

import psutil

from core.bench.child import Child
from core.errors import ExitCode, Problem, UserError

LISTENING = "listening on "
CORES = 4  # for each process of clients: the server and its engine need most


@dataclass(frozen=True)
class Served:
    """One comparison for each repetition: tokens a second, alone and served; the HTTP processes' seconds for a token."""

    offline: tuple[float, ...]
    served: tuple[float, ...]
    seconds_per_token: tuple[float, ...]

    @property
    def kept(self) -> float:
        """The share of the engine's own speed that clients see."""
        return statistics.median(ours / alone for ours, alone in zip(self.served, self.offline, strict=True))


def measure(clients: int, input_len: int, output_len: int, repeat: int, compose: Sequence[str]) -> Served:
    argv = ["--max-model-len", str(max(16, input_len + output_len)), "--max-num-seqs", str(clients), *compose]
    draw = random.Random(0)
    offline, served, spent = [], [], []
    processes = min(clients, max(1, (os.cpu_count() or 1) // CORES))
    with _server(argv) as (process, url), ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        child = Child("dovetail", {"argv": argv}, 0)
        try:
            vocab = 256  # every tokenizer has so many tokens that are text
            for repetition in range(-1, repeat):  # the first warms up
                prompts = [[draw.randrange(10, vocab) for _ in range(input_len)] for _ in range(clients)]
                alone = child.ask(do="generate", prompts=prompts, length=output_len)
                http = [process, *(child for child in process.children() if "asker" in child.cmdline()[-1])]
                before = _processor_seconds(http)
                began = perf_counter()
                parts = [pool.submit(_clients, url, prompts[part::processes], output_len) for part in range(processes)]
                tokens = sum(part.result() for part in parts)
                seconds = perf_counter() - began
                after = _processor_seconds(http)
                if tokens != clients * output_len:
                    raise UserError.of(f"{tokens} tokens came back of {clients * output_len}", "", "read what the server wrote")
                if repetition >= 0:
                    offline.append(clients * output_len / (alone["first"] + alone["rest"]))
                    served.append(tokens / seconds)
                    spent.append((after - before) / tokens)
        finally:
            child.close()
    return Served(tuple(offline), tuple(served), tuple(spent))


def _processor_seconds(processes: Sequence[psutil.Process]) -> float:
    return float(sum(times.user + times.system for times in (process.cpu_times() for process in processes)))


@contextmanager
def _server(argv: Sequence[str]) -> Iterator[tuple[psutil.Process, str]]:
    command = [sys.executable, "-m", "core.serve", *argv, "--log-level", "warning", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            for line in server.stdout:
                if line.startswith(LISTENING):
                    yield psutil.Process(server.pid), line.removeprefix(LISTENING).strip()
                    return
            problem = Problem("the server ended before it listened", "", ("read what it wrote above",))
            raise UserError(problem, exit_code=ExitCode.FAILED)
        finally:
            server.terminate()


def _clients(url: str, prompts: Sequence[Sequence[int]], length: int) -> int:
    return sum(asyncio.run(_everybody(url, prompts, length)))


async def _everybody(url: str, prompts: Sequence[Sequence[int]], length: int) -> list[int]:
    return await asyncio.gather(*(_stream(url, prompt, length) for prompt in prompts))


async def _stream(url: str, prompt: Sequence[int], length: int) -> int:
    """Tokens that a streaming client was told it got. A plain socket: the client's own work is not to be measured."""
    where = urlsplit(url)
    body = json.dumps(
        {
            "prompt": list(prompt),
            "max_tokens": length,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    try:
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {where.netloc}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        )
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        last = b""
        while part := await reader.read(1 << 16):
            last = (last + part)[-4096:]
    finally:
        writer.close()
    for line in reversed(last.decode(errors="replace").splitlines()):
        if line.startswith("data: {"):
            usage = json.loads(line[6:]).get("usage") or {}
            return int(usage.get("completion_tokens", 0))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m core.bench.serving",
        description="What HTTP and streaming leave of the engine's own speed. Other flags go to the composition.",
        allow_abbrev=False,
    )
    parser.add_argument("--clients", type=int, default=16, help="that stream at once (default: %(default)s)")
    parser.add_argument("--input-len", type=int, default=32, help="prompt tokens (default: %(default)s)")
    parser.add_argument("--output-len", type=int, default=128, help="tokens of an answer (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="repetitions after a warm-up (default: %(default)s)")
    known, more = parser.parse_known_args(argv)
    try:
        found = measure(known.clients, known.input_len, known.output_len, known.repeat, more)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    write = sys.stdout.write
    write(f"{known.clients} clients, {known.input_len} tokens in, {known.output_len} out; medians of {known.repeat}\n")
    write(f"engine alone         {statistics.median(found.offline):.1f} tok/s\n")
    write(f"served and streamed  {statistics.median(found.served):.1f} tok/s, {found.kept:.1%} of it\n")
    write(f"HTTP                 {statistics.median(found.seconds_per_token) * 1e6:.0f} us of processor time a token\n")
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
