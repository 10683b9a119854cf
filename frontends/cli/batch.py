"""``dovetail run-batch``: a file of requests in, a file of answers out, by a server of its own or one that runs."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import ExitCode, Problem, UserError
from core.interrupts import INTERRUPTED
from frontends.cli.batch_files import Answers, Asked, Requests, answer, failure, succeeded
from frontends.cli.options import api_key, parsed, server_options, whole
from frontends.cli.reaching import no_address, untrusted, wants_a_key

if TYPE_CHECKING:
    import httpx

TRIES = 5  # of a request whose server cannot be reached or broke off
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds between two, doubled each time; longer where a busy server says so
STOPPED = "stopped: the same command does the rest"
SHOWN_FAILURES = 3
BUSY = frozenset({429, 503})


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dovetail run-batch",
        usage="%(prog)s -i FILE -o FILE [--model MODEL [flags of serve] | --url URL]",
        description="Answer a file of requests in OpenAI's batch format: a JSON object a line, with custom_id, method, url "
        "(/v1/chat/completions, /v1/completions, /v1/embeddings) and body. Each answer is added to the output file as it "
        "comes, in no order. The same command again does what is missing, and nothing twice.",
        epilog="Exit code 0: every request was answered; 1: some were refused or failed, as their lines say; 2: nothing was "
        "started, because something given is wrong; 130: stopped by Ctrl-C, with what was done kept.",
        parents=[server_options()],
        allow_abbrev=False,
    )
    parser.add_argument("-i", "--input-file", required=True, metavar="FILE", type=Path, help="the requests")
    parser.add_argument(
        "-o", "--output-file", required=True, metavar="FILE", type=Path, help="the answers; may be there in part"
    )
    parser.add_argument(
        "--concurrency", type=whole(1), default=64, metavar="N", help="requests at the server at a time (default: %(default)s)"
    )
    parser.add_argument("--retry-failed", action="store_true", help="ask again what an earlier run has no good answer to")
    parser.add_argument(
        "--timeout",
        type=whole(1),
        default=3600,
        metavar="SECONDS",
        help="for one answer, and as long for a server that is busy (default: %(default)s)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no summary")
    return parser


def run(arguments: Sequence[str]) -> int:
    options, server_flags = parsed(parser(), arguments)
    input_file, output_file = Path(os.path.expanduser(options.input_file)), Path(os.path.expanduser(options.output_file))
    if output_file.exists() and input_file.exists() and output_file.samefile(input_file):
        raise UserError.of("requests and answers cannot be one file", "--output-file", "name another file")
    requests = Requests(input_file)
    with Answers(output_file, {each.custom_id for each in requests.asked}, retry_failed=options.retry_failed) as answers:
        if answers.repaired and not options.quiet:
            sys.stderr.write(f"the last line of {output_file} was torn: it is asked again\n")
        missing = [each for each in requests.asked if each.custom_id not in answers.done]
        batch = _Batch(options, requests, answers, missing)
        if not missing:
            batch.tell("nothing is missing")
            return batch.code
        try:
            with _server(options, server_flags) as url:
                return batch.answer_all(url)
        except KeyboardInterrupt:
            batch.tell(STOPPED)
            raise


@contextmanager
def _server(options: argparse.Namespace, flags: Sequence[str]) -> Iterator[str]:
    if options.model is None:
        yield options.url
        return
    from frontends.cli.own_server import own_server

    with own_server(options.model, flags) as url:
        yield url


class _Batch:
    def __init__(self, options: argparse.Namespace, requests: Requests, answers: Answers, missing: Sequence[Asked]) -> None:
        self._options = options
        self._requests = requests
        self._answers = answers
        self._missing = missing
        self._tokens = 0
        self._interrupted = False

    def tell(self, ending: str) -> None:
        if not self._options.quiet:
            done, total = len(self._answers.done), len(self._requests.asked)
            bad = self._answers.failed
            failed = f", {len(bad)} of them with an error: --retry-failed asks these again" if bad else ""
            sys.stderr.write(f"{self._answers.path}: {done} of {total} requests are answered{failed}; {ending}\n")
            for custom_id in sorted(bad)[:SHOWN_FAILURES]:
                sys.stderr.write(f"  {custom_id}: {bad[custom_id]}\n")
            if len(bad) > SHOWN_FAILURES:
                sys.stderr.write(f"  and {len(bad) - SHOWN_FAILURES} more, as their lines say\n")

    @property
    def code(self) -> ExitCode:
        return ExitCode.FAILED if self._answers.failed else ExitCode.OK

    def answer_all(self, url: str) -> int:
        began = time.monotonic()
        with _Progress(len(self._requests.asked), len(self._answers.done), self._options.quiet) as progress:
            try:
                asyncio.run(self._run(url.rstrip("/").removesuffix("/v1"), progress))
            except UserError:
                self.tell("the same command does the rest")
                raise
        took = time.monotonic() - began
        if self._interrupted:
            self.tell(STOPPED)
            return INTERRUPTED
        speed = f", {self._tokens / took:.0f} tokens per second" if self._tokens else ""
        self.tell(f"{took:.1f} s{speed}")
        return self.code

    async def _run(self, url: str, progress: _Progress) -> None:
        import httpx

        key = api_key(self._options)
        limits = httpx.Limits(max_connections=self._options.concurrency, max_keepalive_connections=self._options.concurrency)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        turn = self._requests.bodies(self._missing)
        try:
            client = httpx.AsyncClient(base_url=url, headers=headers, timeout=self._options.timeout, limits=limits)
        except httpx.InvalidURL:
            raise no_address(url) from None
        async with client:
            default = await _first_model(client, url)
            workers = [
                asyncio.create_task(self._work(client, default, turn, progress))
                for _ in range(min(self._options.concurrency, len(self._missing)))
            ]
            loop = asyncio.get_running_loop()

            def stop() -> None:
                self._interrupted = True
                for worker in workers:
                    worker.cancel()

            usual = signal.getsignal(signal.SIGINT)
            loop.add_signal_handler(signal.SIGINT, stop)
            try:
                await asyncio.gather(*workers)
            except asyncio.CancelledError:
                if not self._interrupted:
                    raise
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
                loop.remove_signal_handler(signal.SIGINT)
                signal.signal(signal.SIGINT, usual)

    async def _work(
        self, client: httpx.AsyncClient, model: str, turn: Iterator[tuple[Asked, dict[str, Any]]], progress: _Progress
    ) -> None:
        for asked, body in turn:  # shared by all workers: each takes what is next
            body.setdefault("model", self._options.model_name or model)
            line = await self._answer(client, asked, body)
            self._answers.add(line)
            if succeeded(line):
                self._tokens += _generated(line["response"]["body"])
            progress.step(failed=len(self._answers.failed))

    async def _answer(self, client: httpx.AsyncClient, asked: Asked, body: dict[str, Any]) -> dict[str, Any]:
        """A busy server is no failed try: it is asked for as long as an answer may take.

        :raises UserError: when there is no server any more.
        """
        import httpx

        pause, failed, began = FIRST_PAUSE, 0, time.monotonic()
        while True:
            try:
                response = await client.post(asked.url, json=body)
            except httpx.TimeoutException:
                return failure(asked.custom_id, "request_timeout", f"no answer within {self._options.timeout} s")
            except UnicodeEncodeError:
                return failure(asked.custom_id, "invalid_request", "the body has a lone surrogate, which is no text")
            except httpx.HTTPError as error:
                failed += 1
                if failed == TRIES and isinstance(error, httpx.ConnectError):
                    raise _gone(str(client.base_url), str(error)) from None
                if failed == TRIES:
                    return failure(asked.custom_id, "connection_error", str(error) or type(error).__name__)
            else:
                if response.status_code not in BUSY or time.monotonic() - began >= self._options.timeout:
                    return _answered(asked.custom_id, response)
                pause, failed = max(pause, _wanted_pause(response)), 0
            await asyncio.sleep(min(pause, LONGEST_PAUSE))
            pause *= 2


async def _first_model(client: httpx.AsyncClient, url: str) -> str:
    """Which model a body without one means; and whether there is a server at all."""
    import httpx

    try:
        response = await client.get("/v1/models")
        if response.status_code in (401, 403):
            raise wants_a_key(url)
        return str(response.json()["data"][0]["id"])
    except httpx.UnsupportedProtocol:
        raise no_address(url) from None
    except httpx.HTTPError as error:
        raise _gone(url, str(error)) from None
    except (ValueError, LookupError, TypeError):
        problem = Problem(f"what answers at {url} does not speak the OpenAI API", "--url", ("check the address and port",))
        raise UserError(problem, exit_code=ExitCode.FAILED) from None


def _gone(url: str, why: str) -> UserError:
    url = url.rstrip("/")
    return untrusted(url, why) or UserError(
        Problem(
            f"no server answers at {url}" + (f": {why[:1].lower()}{why[1:]}" if why else ""),
            "--url",
            ("start one: dovetail serve", "or let the command start its own: --model demo"),
        ),
        exit_code=ExitCode.FAILED,
    )


def _wanted_pause(response: httpx.Response) -> float:
    said = response.headers.get("retry-after", "")
    return float(said) if said.isdecimal() else 0.0


def _answered(custom_id: str, response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        return failure(custom_id, "invalid_response", f"status {response.status_code}, and no JSON: {response.text[:200]}")
    return answer(custom_id, response.status_code, response.headers.get("x-request-id", ""), body)


def _generated(body: Any) -> int:
    usage = body.get("usage") if isinstance(body, dict) else None
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return tokens if isinstance(tokens, int) else 0


class _Progress:
    """A bar on a terminal, nothing elsewhere."""

    def __init__(self, total: int, done: int, quiet: bool) -> None:
        self._bar = None
        if not quiet and sys.stderr.isatty():
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            from frontends.cli.screen import console

            columns = TextColumn("answering"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[failed]}")
            self._bar = Progress(
                *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console(stderr=True), transient=True
            )
            self._task = self._bar.add_task("", total=total, completed=done, failed="")

    def __enter__(self) -> _Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def step(self, failed: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, advance=1, failed=f"{failed} failed" if failed else "")

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
