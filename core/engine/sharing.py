"""One engine that several processes ask. All that passes between it and them passes through the process that started both.

    engine  <── client.py ──>  the first, ``Sharing``  <── ROUTER, DEALER ──>  every other, ``SharedEngine``

What the engine says goes to everyone as it came, and each takes what is its own; so nothing is decoded on the way but requests,
whose ids are remembered in order that they end with the process that asked.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import zmq

from core.engine import wire
from core.engine.calls import WATCH_SECONDS, EngineCalls, State
from core.engine.client import EngineClient
from core.engine.process import how_it_ended, private_folder
from core.engine.server import hold_lifeline
from core.errors import EngineDeadError

log = logging.getLogger("dovetail.engine")

BOOTSTRAP = "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); from core.engine.sharing import main; main()"
SWITCH_SECONDS = 0.0005  # a thread that passes on what the engine says waits so long at most for a busy loop
HELLO, READY, SAID, TROUBLE, OVER, DEAD = b"hello", b"ready", b"said", b"trouble", b"over", b"dead"
"""What a message is: to the first process HELLO, and SAID with what is for the engine; from it all but HELLO."""


@dataclass(frozen=True)
class Place:
    """Where an asker stands: its number, of how many, and the folder of the socket to the first."""

    number: int
    askers: int
    folder: str


class Sharing:
    """In the first process: the other askers, each a process of its own, and a thread that passes messages on.

    A process that ends by itself is told of, and its requests are ended; the others go on.
    """

    def __init__(self, client: EngineClient, askers: int) -> None:
        self.busy = False
        sys.setswitchinterval(SWITCH_SECONDS)
        self._client = client
        self._askers = askers
        self._folder = private_folder()
        self._context = zmq.Context()
        self._context.linger = 0
        self._router = self._context.socket(zmq.ROUTER)
        self._heard = self._context.socket(zmq.PULL)
        self._tell = self._context.socket(zmq.PUSH)  # belongs to the thread that watches the engine
        for socket in (self._router, self._heard, self._tell):
            socket.set_hwm(0)
        self._router.bind(f"ipc://{self._folder}/asker")
        self._heard.bind("inproc://heard")
        self._tell.connect("inproc://heard")
        self._news: deque[tuple[bytes, bytes]] = deque()  # what the engine said and nobody was told yet
        self._state: list[bytes] = []  # what a newcomer is told first
        self._here: set[bytes] = set()
        self._running: dict[bytes, set[str]] = {}  # ids of requests, by who asked
        self._lock = threading.Lock()  # of these, between the two threads
        self._children: dict[bytes, subprocess.Popen[bytes]] = {}
        self._ending = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._pass_on, name="engine-sharing", daemon=True)
        client.listen(self)
        self._thread.start()

    def start(self, number: int, run: Callable[[Place, Any], int], argument: Any, descriptors: Sequence[int]) -> None:
        """A process that does ``run`` with its place and ``argument``, and ends with the code that it returns."""
        child = subprocess.Popen(
            [sys.executable, "-c", BOOTSTRAP, f"dovetail-asker-{number}"],
            stdin=subprocess.PIPE,
            start_new_session=True,
            pass_fds=descriptors,
        )
        assert child.stdin is not None
        child.stdin.write(pickle.dumps(sys.path) + pickle.dumps((run, Place(number, self._askers, self._folder), argument)))
        child.stdin.flush()
        self._children[str(number).encode()] = child

    def end_others(self, grace: float) -> None:
        """They are asked to end, and killed if they do not. The engine must live until they have."""
        self._ending = True
        for child in self._children.values():
            child.terminate()
        for child in self._children.values():
            try:
                child.wait(grace)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            if child.stdin is not None:
                child.stdin.close()

    def close(self) -> None:
        """When the client is closed, and watches no more."""
        self._over.set()
        self._thread.join()
        for socket in (self._router, self._heard, self._tell):
            socket.close()
        self._context.term()
        shutil.rmtree(self._folder, ignore_errors=True)

    # -- by the thread that watches the engine ---------------------------------------------------------------------------

    def said(self, raw: bytes, message: wire.FromEngine) -> None:
        if isinstance(message, wire.Step):
            self._forget([event.request_id for event in message.events if event.finish_reason is not None])
        elif isinstance(message, wire.Refused):
            self._forget(message.request_ids)
        elif isinstance(message, (wire.Embedded, wire.Scored)):
            self._forget([message.request_id])
        self._note(READY if isinstance(message, wire.Ready) else SAID, raw)

    def ended(self, reason: str, *, again: bool) -> None:
        self._note(OVER if again else DEAD, reason.encode())

    def _note(self, kind: bytes, raw: bytes) -> None:
        """The thread is woken once for all that it has not taken up."""
        self._news.append((kind, raw))
        if len(self._news) == 1:
            self._tell.send(b"")

    # -- the thread -----------------------------------------------------------------------------------------------------

    def _pass_on(self) -> None:
        poller = zmq.Poller()
        for socket in (self._router, self._heard):
            poller.register(socket, zmq.POLLIN)
        trouble = ""
        while not self._over.is_set():
            ready = dict(poller.poll(int(WATCH_SECONDS * 1000)))
            if self._heard in ready:
                self._heard.recv()
                self._tell_news()
            if self._router in ready:
                self._take(*self._router.recv_multipart())
            if trouble != self._client.trouble:
                trouble = self._client.trouble
                self._tell_all(TROUBLE, trouble.encode())
            self._look_at_children()

    def _tell_news(self) -> None:
        """All there is in one message to each: every sending lets another thread have the interpreter."""
        frames: list[bytes] = []
        for _ in range(len(self._news)):
            kind, raw = self._news.popleft()
            if kind != SAID:
                self._state = [kind, raw]
            frames += [kind, raw]
        if frames:
            self._tell_all(*frames)
        if self._news:  # it came meanwhile, when there was something already
            self._tell_news()

    def _tell_all(self, *message: bytes) -> None:
        for name in self._here:
            self._router.send_multipart([name, *message])

    def _take(self, name: bytes, kind: bytes, raw: bytes) -> None:
        if kind == HELLO:
            self._here.add(name)
            if self._state:
                self._router.send_multipart([name, *self._state])
            return
        message = wire.decode_to_engine(raw)
        if isinstance(message, wire.Submit):
            with self._lock:
                self._running.setdefault(name, set()).update(request.request_id for request in message.requests)
                self.busy = True
        elif isinstance(message, wire.Abort):
            self._forget(message.request_ids)
        self._client.pass_on(raw)

    def _forget(self, request_ids: Sequence[str]) -> None:
        if not request_ids:
            return
        with self._lock:
            for running in self._running.values():
                running.difference_update(request_ids)
            self.busy = any(self._running.values())

    def _look_at_children(self) -> None:
        for name, child in list(self._children.items()):
            if self._ending or child.poll() is None:
                continue
            del self._children[name]
            if child.stdin is not None:
                child.stdin.close()
            self._here.discard(name)
            if not self._client.dead:
                log.error("a process that asks the engine %s; the others go on", how_it_ended(child.returncode))
            left = sorted(self._running.get(name, ()))
            self._forget(left)
            self._client.pass_on(wire.encode(wire.Abort(left)))


class SharedEngine(EngineCalls):
    """In every other process: the engine, by way of the first."""

    def __init__(self, place: Place) -> None:
        super().__init__(itertools.count(place.number, place.askers))
        sys.setswitchinterval(SWITCH_SECONDS)
        self._trouble = ""
        self._context = zmq.Context()
        self._context.linger = 0
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.set_hwm(0)
        self._socket.identity = str(place.number).encode()
        self._socket.connect(f"ipc://{place.folder}/asker")
        self._heard = self._context.socket(zmq.PULL)
        self._heard.set_hwm(0)
        self._heard.bind("inproc://asked")
        self._asking = self._context.socket(zmq.PUSH)
        self._asking.set_hwm(0)
        self._asking.connect("inproc://asked")
        self._send_lock = threading.Lock()

    @property
    def trouble(self) -> str:
        return self._trouble

    def start(self) -> None:
        self._watcher.start()

    def send(self, message: wire.ToEngine) -> bool:
        with self._send_lock:
            try:
                self._asking.send(wire.encode(message), zmq.NOBLOCK)
            except (zmq.Again, zmq.ZMQError):
                return False
        return True

    def close(self) -> None:
        with self._lock:
            self._state = State.CLOSED
        self._watcher.join()
        for socket in (self._socket, self._heard, self._asking):
            socket.close()
        self._context.term()

    def _watch(self) -> None:
        """The only one to touch the socket to the first process, which what is asked here reaches over another."""
        poller = zmq.Poller()
        for socket in (self._socket, self._heard):
            poller.register(socket, zmq.POLLIN)
        self._socket.send_multipart([HELLO, b""])
        while self._state not in (State.DEAD, State.CLOSED):
            ready = dict(poller.poll(int(WATCH_SECONDS * 1000)))
            if self._heard in ready:
                self._socket.send_multipart([SAID, self._heard.recv()])
            if self._socket in ready:
                frames = self._socket.recv_multipart()
                for kind, raw in zip(frames[::2], frames[1::2], strict=True):
                    self._take(kind, raw)

    def _take(self, kind: bytes, raw: bytes) -> None:
        if kind == TROUBLE:
            self._trouble = raw.decode()
        elif kind in (OVER, DEAD):
            self._end(raw.decode(), again=kind == OVER)
        else:
            if kind == READY:
                self._life = _Life(self)
            self._hear(wire.decode_from_engine(raw))

    def _end(self, reason: str, *, again: bool) -> None:
        with self._lock:
            self._state, self._detail = State.LOADING if again else State.DEAD, reason
            life, self._life, self._trouble = self._life, None, ""
            if not again:
                self._error = EngineDeadError(reason)
        self._in_loop(self._bury, life, reason)
        if not again:
            self._in_loop(self._mourn)
            self._settled.set()


class _Life:
    """Between one READY and the end that is told next."""

    def __init__(self, engine: SharedEngine) -> None:
        self.send = engine.send


def main() -> None:
    """Entry of such a process. Standard input brings what it is to do, then stays open: it ends with the first one's life."""
    run, place, argument = pickle.load(sys.stdin.buffer)
    threading.Thread(target=hold_lifeline, args=(os.getppid(), place.folder), name="lifeline", daemon=True).start()
    code = run(place, argument)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            if stream is not None:
                stream.flush()
    os._exit(code)  # the thread that reads what the engine says never ends by itself
