"""A server for one conversation: started on a free port, ended with the conversation.

It is the same server that ``dovetail serve`` starts, in a process of its own, so that every flag means the same and the
terminal survives whatever happens to it. What happens to the terminal, a SIGKILL too, the server does not survive.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import IO

from core.errors import ExitCode, Problem, UserError

_ANNOUNCEMENT = "listening on "
_PATIENCE = 10.0  # seconds for the server to end by itself


@contextmanager
def own_server(model: str, flags: Sequence[str]) -> Iterator[str]:
    """The address of a server for ``model``. :raises UserError: when it does not start; it has then said why on stderr."""
    command = [sys.executable, "-P", "-m", "frontends.cli.served", "--model", model, *flags]
    given = {flag.partition("=")[0].replace("_", "-") for flag in flags}
    for own, value in (("--log-level", "warning"), ("--port", "0")):
        if own not in given:
            command += [own, value]
    with _ended_by_signals():
        # A group of its own: Ctrl-C is for the answer that is being written, not for the server.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield _address(process.stdout, process)
        finally:
            process.terminate()
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdin.close()


def _address(output: IO[str], process: subprocess.Popen[str]) -> str:
    for line in output:
        if line.startswith(_ANNOUNCEMENT):
            threading.Thread(target=_discard, args=(output,), daemon=True).start()  # a full pipe would stop the server
            return line.removeprefix(_ANNOUNCEMENT).strip()
        sys.stderr.write(line)
    output.close()
    code = process.wait()
    exit_code = ExitCode(code) if code in (ExitCode.REFUSED, ExitCode.ENGINE_DIED) else ExitCode.FAILED
    raise UserError(Problem("the model's server did not start; its reason is above", "--model"), exit_code=exit_code)


def _discard(output: IO[str]) -> None:
    with output:
        output.read()


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """A closed terminal or a SIGTERM ends the block like an exception, so that the server is not left behind."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
