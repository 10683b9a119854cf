"""One life of the engine's process, seen from its parent: how it is started, spoken to and ended."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading

import zmq

from core.engine import wire
from core.engine.interpreter import Interpreter

LONGEST_SOCKET_FOLDER = 80  # bytes; the whole address of a unix socket has about 100
GREETING_MS = 5000
FAREWELL_MS = 200
LIFELINE_SECONDS = 1.0


class EngineProcess:
    """``receive`` belongs to one thread; everything else may be called from any."""

    def __init__(self, payload: bytes, interpreter: Interpreter | None = None) -> None:
        self._folder = private_folder()
        self._context = zmq.Context()
        self._context.linger = 0
        self._to_engine = self._context.socket(zmq.PUSH)
        self._from_engine = self._context.socket(zmq.PULL)
        self._send_lock = threading.Lock()
        self._end_fd: int | None = None
        self._interpreter: Interpreter | None = None
        try:
            for socket, name in ((self._to_engine, "to_engine"), (self._from_engine, "from_engine")):
                socket.set_hwm(0)
                socket.bind(f"ipc://{self._folder}/{name}")
            self._interpreter = interpreter or Interpreter()
        except BaseException:
            self.release()
            raise
        self._child = self._interpreter.child
        self._interpreter.become(self._folder, payload)
        self._end_fd = _end_fd(self._child.pid)
        self._listening = zmq.Poller()
        self._listening.register(self._from_engine, zmq.POLLIN)
        if self._end_fd is not None:
            self._listening.register(self._end_fd, zmq.POLLIN)

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def alive(self) -> bool:
        return self._child.poll() is None

    def send(self, message: wire.ToEngine) -> bool:
        """False when nobody is there to take it. Never blocks."""
        return self.send_encoded(wire.encode(message))

    def send_encoded(self, raw: bytes) -> bool:
        with self._send_lock:
            try:
                self._to_engine.send(raw, zmq.NOBLOCK)
            except (zmq.Again, zmq.ZMQError):
                return False
        return True

    def receive(self, timeout: float) -> bytes | None:
        """A message; None after ``timeout`` seconds, or as soon as the process has ended."""
        self._listening.poll(int(timeout * 1000))
        try:
            return self._from_engine.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None

    def greet(self) -> bool:
        """After its first message: wait until both directions stand; the addresses are not needed any more then."""
        stands = bool(self._to_engine.poll(GREETING_MS, zmq.POLLOUT))
        shutil.rmtree(self._folder, ignore_errors=True)
        return stands

    def last_words(self) -> list[bytes]:
        """What a process that has ended still said."""
        words = []
        while self._from_engine.poll(FAREWELL_MS):
            words.append(self._from_engine.recv())
        return words

    def obituary(self) -> str:
        return f"the engine process {self.pid} {how_it_ended(self._child.wait())}"

    def end(self, grace: float) -> None:
        """Ask, then cut the lifeline, then kill. Returns when the process is gone."""
        if self.alive and self.send(wire.Stop()) and self._gone(grace):
            return
        self._cut_lifeline()
        if not self._gone(LIFELINE_SECONDS):
            self._child.kill()
            self._child.wait()

    def _gone(self, seconds: float) -> bool:
        try:
            self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _cut_lifeline(self) -> None:
        if self._interpreter is not None:
            self._interpreter.cut_lifeline()

    def release(self) -> None:
        """Give back sockets, pipe and folder, once the process is gone and nobody receives."""
        self._cut_lifeline()
        with self._send_lock:
            self._to_engine.close()
        self._from_engine.close()
        end_fd, self._end_fd = self._end_fd, None  # closed once: its number may be another's then
        if end_fd is not None:
            os.close(end_fd)
        self._context.term()
        shutil.rmtree(self._folder, ignore_errors=True)


def how_it_ended(code: int) -> str:
    """Of a process that has ended with this code, as ``subprocess`` counts them."""
    if code < 0:
        name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
        hint = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"was ended by {name}{hint}"
    return f"ended with exit code {code}"


def _end_fd(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends, where the system has such."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def private_folder() -> str:
    folder = tempfile.mkdtemp(prefix="dovetail-")  # mode 0700
    if len(os.fsencode(folder)) <= LONGEST_SOCKET_FOLDER:
        return folder
    os.rmdir(folder)
    return tempfile.mkdtemp(prefix="dovetail-", dir="/tmp")
