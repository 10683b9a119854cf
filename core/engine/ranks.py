"""The other ranks of a model that several processes share, as rank 0 sees them: started, told every step, watched, ended."""

from __future__ import annotations

import contextlib
import itertools
import logging
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from core.engine.process import how_it_ended
from core.engine.rank import Begin, Begun, Copied, Copy, Failed, Loaded, MakeHostPages, RankBuilder
from core.engine.runner import Runner
from core.errors import EngineDeadError, RequestError, UserError
from core.interfaces.compute import Copying, HostPages, KVCache, SamplingRows, StepBatch
from core.interfaces.graph import GraphBackend, Outcome
from core.interfaces.parallel import Collective
from core.interfaces.sampler import Sampler
from core.models.decoder import Decoder

log = logging.getLogger("dovetail.engine")

BOOTSTRAP = "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); from core.engine.rank import main; main()"
WATCH_SECONDS = 0.25
DYING_SECONDS = 2.0  # how long after a lost connection a process may take to be seen dead
ENDING_SECONDS = 2.0

Message = TypeVar("Message")


@dataclass
class _Child:
    rank: int
    process: subprocess.Popen[bytes]
    connection: Connection
    copied: int = -1  # the latest ticket: copies are made in the order they are asked for

    @property
    def obituary(self) -> str:
        return f"rank {self.rank}, the process {self.process.pid}, {how_it_ended(self.process.wait())}"


@dataclass
class OtherRanks:
    """``folder`` is for the ranks to meet in. ``collective`` is rank 0's own, to be told when a rank is gone.

    One thread uses it; another watches, so that an idle engine and one that waits for a rank notice its end too.
    """

    build: RankBuilder
    argument: Any
    ranks: int
    collective: Collective | None = None
    _children: list[_Child] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="dovetail-ranks-")  # mode 0700
        self._tickets = itertools.count()
        self._closing = threading.Event()
        payload = pickle.dumps((self.build, self.argument))
        try:
            for rank in range(1, self.ranks):
                self._children.append(self._start(rank, payload))
        except BaseException:
            self.close()
            raise
        self._watcher = threading.Thread(target=self._watch, name="ranks-watch", daemon=True)
        self._watcher.start()

    def _start(self, rank: int, payload: bytes) -> _Child:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", BOOTSTRAP, f"dovetail-rank-{rank}"],
                stdin=subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # one that is gone already is noticed soon
                process.stdin.write(pickle.dumps(sys.path) + pickle.dumps((theirs.fileno(), rank, self.folder, payload)))
                process.stdin.flush()
        return _Child(rank, process, Connection(ours.detach()))

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(child.process.pid for child in self._children)

    # --- loading ----------------------------------------------------------------------------------------------------

    def agree(self, pages: int) -> int:
        """Wait until all have loaded; the KV pages that everyone has room for, rank 0 having it for ``pages``.

        :raises UserError: what keeps one of them from it.
        """
        agreed = min([pages, *(self._await(child, Loaded).pages for child in self._children)])
        self.tell(Begin(agreed))
        return agreed

    def wait_begun(self) -> None:
        for child in self._children:
            self._await(child, Begun)

    def _await(self, child: _Child, kind: type[Message]) -> Message:
        try:
            while not child.connection.poll(WATCH_SECONDS):
                self.check()
            message = child.connection.recv()
        except (EOFError, OSError) as error:
            raise self.lost(error) from error
        if isinstance(message, Failed):
            raise _told(child, message)
        assert isinstance(message, kind)
        return message

    # --- running ----------------------------------------------------------------------------------------------------

    def tell(self, message: object) -> None:
        raw = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        with _uninterrupted():
            for child in self._children:
                try:
                    child.connection.send_bytes(raw)
                except OSError as error:
                    raise self.lost(error) from error

    def copy(self, out: bool, pages: NDArray[np.int32], places: NDArray[np.int32]) -> int:
        """Ask for a copy of KV pages; the ticket to ask about it with."""
        ticket = next(self._tickets)
        self.tell(Copy(ticket, out, pages, places))
        return ticket

    def copied(self, ticket: int, timeout: float = 0.0) -> bool:
        """Whether every rank has made this copy; waits for one of them at most so long."""
        for child in self._children:
            try:
                while child.copied < ticket:
                    if not child.connection.poll(timeout):
                        self.check()
                        return False
                    message = child.connection.recv()
                    if isinstance(message, Failed):
                        raise _told(child, message)
                    assert isinstance(message, Copied)
                    child.copied = message.ticket
            except (EOFError, OSError) as error:
                raise self.lost(error) from error
        return True

    def check(self) -> None:
        """:raises EngineDeadError: when a rank is gone; what it had is nowhere else."""
        if self._gone:
            raise self.lost(None)

    def lost(self, error: Exception | None) -> Exception:
        """What to raise when something that ranks do together failed. After it they are not in step any more."""
        end = time.monotonic() + DYING_SECONDS
        while True:
            gone = self._gone  # looked at first: what a process said before its end is there to be read then
            for child in self._children:
                with contextlib.suppress(EOFError, OSError):
                    while child.connection.poll():
                        if isinstance(message := child.connection.recv(), Failed):
                            return _told(child, message)
            if gone:
                return EngineDeadError(gone[0].obituary)
            if time.monotonic() > end:
                return error if isinstance(error, EngineDeadError) else EngineDeadError(f"the ranks are out of step: {error}")
            time.sleep(0.01)

    @property
    def _gone(self) -> list[_Child]:
        return [child for child in self._children if child.process.poll() is not None]

    def _watch(self) -> None:
        while not self._closing.wait(WATCH_SECONDS):
            if self._gone:
                if self.collective is not None:
                    self.collective.abort()
                return

    def close(self) -> None:
        """Cut the lifelines; a process that does not end by itself is killed."""
        self._closing.set()
        for child in self._children:
            child.connection.close()
            if child.process.stdin is not None:
                with contextlib.suppress(OSError):
                    child.process.stdin.close()
        for child in self._children:
            try:
                child.process.wait(ENDING_SECONDS)
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
        if self.collective is not None:
            self.collective.close()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until what the ranks do together is done. It is heard where an ``LLM`` has its engine in the main thread."""
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if came:
        usual(*came[0])


def _told(child: _Child, failure: Failed) -> Exception:
    if failure.problems:
        return UserError(*failure.problems, exit_code=failure.exit_code)
    log.error("rank %d's traceback:\n%s", child.rank, failure.traceback.rstrip())
    return EngineDeadError(f"rank {child.rank} broke: {failure.what}")


# --- what rank 0 does together with the others ------------------------------------------------------------------------------

_NO_FLOATS = np.zeros(0, np.float32)
_NO_INTS = np.zeros(0, np.int32)
NOT_SAMPLED = SamplingRows(
    temperature=_NO_FLOATS,
    top_k=_NO_INTS,
    top_p=_NO_FLOATS,
    min_p=_NO_FLOATS,
    seeds=np.zeros(0, np.uint64),
    positions=np.zeros(0, np.int64),
    logprobs=_NO_INTS,
)
"""Instead of what only rank 0 needs."""


class SplitRunner(Runner):
    """Rank 0's: the others get each step first. One that fails on its way to the logits is the end of all of them."""

    def __init__(self, decoder: Decoder, kv: KVCache, sampler: Sampler, graph: GraphBackend, others: OtherRanks) -> None:
        super().__init__(decoder, kv, sampler, graph)
        self._others = others

    @property
    def ahead(self) -> bool:
        """The others are sent every token: none of them samples."""
        return False

    def forward(self, batch: StepBatch) -> Outcome:
        with _uninterrupted():
            self._others.tell(replace(batch, sampling=NOT_SAMPLED))
            try:
                return super().forward(batch)
            except Exception as error:
                raise self._others.lost(error) from error

    def hidden_states(self, batch: StepBatch) -> NDArray[np.float32]:
        raise RequestError(
            "hidden states are not to be had from a model that several processes share", code="unsupported_parameter"
        )

    def check(self) -> None:
        self._others.check()

    def close(self) -> None:
        self._others.close()
        super().close()


class PagesOfAllRanks(KVCache):
    """The KV cache for a cache policy: what it copies is copied on every rank."""

    def __init__(self, kv: KVCache, others: OtherRanks) -> None:
        self.num_pages = kv.num_pages
        self.page_size = kv.page_size
        self.nbytes = kv.nbytes * others.ranks  # host memory is the same for all
        self._kv = kv
        self._others = others

    def host_pages(self, number: int) -> HostPages | None:
        own = self._kv.host_pages(number)
        if own is None:
            return None
        self._others.tell(MakeHostPages(number))
        return _HostPagesOfAllRanks(own, self._others)


class _HostPagesOfAllRanks(HostPages):
    def __init__(self, own: HostPages, others: OtherRanks) -> None:
        self.number = own.number
        self._own = own
        self._others = others

    def save(self, pages: NDArray[np.int32], places: NDArray[np.int32]) -> Copying:
        ticket = self._others.copy(True, pages, places)
        return _CopyingOnAllRanks(self._own.save(pages, places), ticket, self._others)

    def restore(self, places: NDArray[np.int32], pages: NDArray[np.int32]) -> Copying:
        ticket = self._others.copy(False, pages, places)
        return _CopyingOnAllRanks(self._own.restore(places, pages), ticket, self._others)

    def close(self) -> None:
        self._own.close()


class _CopyingOnAllRanks(Copying):
    def __init__(self, own: Copying, ticket: int, others: OtherRanks) -> None:
        self._own = own
        self._ticket = ticket
        self._others = others

    def done(self) -> bool:
        return self._own.done() and self._others.copied(self._ticket)

    def wait(self) -> None:
        self._own.wait()
        while not self._others.copied(self._ticket, WATCH_SECONDS):
            pass
