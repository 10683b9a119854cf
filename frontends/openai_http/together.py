"""Several processes at one door: what they know of each other, so that whichever is asked answers for all.

How many calls each has in flight stands in memory that all of them see. Anything else is asked of the others when somebody
wants to know, over sockets in a folder that is the server's own: a line of JSON there, a line back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import mmap
import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

PATIENCE = 2.0  # seconds until who says nothing is left out
LONGEST_LINE = 1 << 24

Answers = dict[str, Callable[[Any], Awaitable[Any]]]
"""By what is asked."""


LONGEST_FOLDER = 90  # bytes; the whole address of a unix socket has about 100


def private_folder() -> str:
    folder = tempfile.mkdtemp(prefix="dovetail-http-")  # mode 0700
    if len(os.fsencode(folder)) <= LONGEST_FOLDER:
        return folder
    os.rmdir(folder)
    return tempfile.mkdtemp(prefix="dovetail-http-", dir="/tmp")


class Together:
    """One of them, the ``number``-th of ``processes``. It can be pickled, and is opened where it runs."""

    def __init__(self, folder: str, number: int, processes: int) -> None:
        self.folder = folder
        self.number = number
        self.processes = processes
        self._calls: memoryview | None = None
        if number == 0:
            (Path(folder) / "calls").write_bytes(bytes(8 * processes))

    def __reduce__(self) -> tuple[Any, ...]:
        return Together, (self.folder, self.number, self.processes)

    def beside(self, number: int) -> Together:
        return Together(self.folder, number, self.processes)

    def note_calls(self, number: int) -> None:
        """So many are in flight here."""
        self._in_flight[self.number] = number

    def calls_elsewhere(self) -> int:
        return sum(self._in_flight) - self._in_flight[self.number]

    @property
    def _in_flight(self) -> memoryview:
        if self._calls is None:
            with (Path(self.folder) / "calls").open("r+b") as file:
                self._calls = memoryview(mmap.mmap(file.fileno(), 0)).cast("q")
        return self._calls

    @contextlib.asynccontextmanager
    async def answering(self, answers: Answers) -> Any:
        """Within the block the others are answered."""

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, ValueError), contextlib.closing(writer):
                what, about = json.loads(await reader.readline())
                writer.write(json.dumps(await answers[what](about)).encode() + b"\n")
                await writer.drain()

        server = await asyncio.start_unix_server(answer, self._address(self.number), limit=LONGEST_LINE)
        try:
            yield
        finally:
            server.close()

    async def ask(self, what: str, about: Any = None, *, patience: float | None = PATIENCE) -> list[Any]:
        """The answers of all others that give one."""
        others = [number for number in range(self.processes) if number != self.number]
        asked = (self._ask(number, what, about, patience) for number in others)
        return [answer for answers in await asyncio.gather(*asked) for answer in answers]

    async def _ask(self, number: int, what: str, about: Any, patience: float | None) -> list[Any]:
        try:
            async with asyncio.timeout(patience):
                reader, writer = await asyncio.open_unix_connection(self._address(number), limit=LONGEST_LINE)
                with contextlib.closing(writer):
                    writer.write(json.dumps([what, about]).encode() + b"\n")
                    return [json.loads(await reader.readline())]
        except ConnectionRefusedError:
            self._in_flight[number] = 0  # it is gone, and what it had in flight with it
        except (OSError, ValueError, TimeoutError):
            pass
        return []

    def _address(self, number: int) -> str:
        return f"{self.folder}/{number}"
