"""A rank's process: holds its part of a model and runs every step that rank 0 sends, until rank 0 ends it or is gone itself."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from core.engine.server import hold_lifeline
from core.errors import EngineDeadError, ExitCode, Problem, UserError
from core.interfaces.compute import HostPages, KVCache, StepBatch
from core.interfaces.graph import GraphBackend, Outcome, StaticStep, StepShape
from core.interfaces.parallel import Collective
from core.models.decoder import Decoder


@dataclass(frozen=True, slots=True)
class Loaded:
    """To rank 0: there is room for so many KV pages."""

    pages: int


@dataclass(frozen=True, slots=True)
class Begin:
    """From rank 0: everyone has loaded, and has so many pages."""

    pages: int


@dataclass(frozen=True, slots=True)
class Begun:
    """To rank 0: steps may come."""


@dataclass(frozen=True, slots=True)
class MakeHostPages:
    number: int


@dataclass(frozen=True, slots=True)
class Copy:
    """Of KV pages to places in host memory (``out``) or back; ``Copied`` says that it is done."""

    ticket: int
    out: bool
    pages: NDArray[np.int32]
    places: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Copied:
    ticket: int


@dataclass(frozen=True, slots=True)
class Failed:
    problems: tuple[Problem, ...]
    exit_code: ExitCode
    what: str
    traceback: str


@dataclass(frozen=True, slots=True)
class Part:
    """One rank's part of a model, loaded. ``pages``: what is left has room for."""

    decoder: Decoder
    collective: Collective | None
    pages: int


class Rank:
    """Any rank but 0: it computes the same steps, and nobody asks it what came of them."""

    def __init__(self, part: Part, page_size: int, graph: GraphBackend) -> None:
        self.part = part
        self._page_size = page_size
        self._graph = graph
        self._host: HostPages | None = None
        self._waiting = ThreadPoolExecutor(1, thread_name_prefix="copied")

    def begin(self, pages: int, folder: Path) -> None:
        decoder, collective = self.part.decoder, self.part.collective
        assert collective is not None
        collective.meet(folder)
        self._kv: KVCache = decoder.backend.kv_cache(decoder.spec, pages, self._page_size)

        def static_step(shape: StepShape) -> StaticStep | None:
            return decoder.backend.static_step(shape, decoder.spec, self._kv)

        self._forward = self._graph.prepare(lambda step: Outcome(decoder.forward(step, self._kv)), static_step)

    def obey(self, message: object, answer: Callable[[object], None]) -> None:
        if isinstance(message, StepBatch):
            decoder = self.part.decoder
            self._forward(decoder.backend.upload(message, decoder.spec, self._kv))
        elif isinstance(message, MakeHostPages):
            self._host = self._kv.host_pages(message.number)
        elif isinstance(message, Copy):
            assert self._host is not None
            if message.out:
                copying = self._host.save(message.pages, message.places)
            else:
                copying = self._host.restore(message.places, message.pages)
            ticket = message.ticket

            def tell() -> None:
                copying.wait()
                answer(Copied(ticket))

            self._waiting.submit(tell)


RankBuilder = Callable[[Any, int], Rank]


def main() -> NoReturn:
    """Entry of the process. Standard input brings (descriptor, rank, folder, pickled (builder, argument)), then stays open."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # rank 0 decides
    descriptor, rank, folder, payload = pickle.load(sys.stdin.buffer)
    threading.Thread(target=hold_lifeline, args=(os.getppid(), folder), name="lifeline", daemon=True).start()
    connection = Connection(descriptor)
    try:
        build, argument = cast(tuple[RankBuilder, Any], pickle.loads(payload))
        own = build(argument, rank)
        connection.send(Loaded(own.part.pages))
        begin = connection.recv()
        assert isinstance(begin, Begin)
        own.begin(begin.pages, Path(folder))
        connection.send(Begun())
        while True:
            own.obey(connection.recv(), connection.send)
    except (EngineDeadError, EOFError, ConnectionError):
        threading.Event().wait()  # another rank is gone: rank 0 tells of that one, and then this one's lifeline ends
    except UserError as error:
        connection.send(Failed(error.problems, error.exit_code, "", ""))
    except BaseException as error:
        what = "".join(traceback.format_exception_only(error)).strip()
        connection.send(Failed((), ExitCode.FAILED, what, traceback.format_exc()))
    os._exit(ExitCode.FAILED)
