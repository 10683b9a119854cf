"""The front end's side of the engine process: submits requests, hands their tokens to tasks, and notices its end."""

from __future__ import annotations

import contextlib
import itertools
import logging
import pickle
from typing import Any, Protocol

import msgspec

from core.engine import wire
from core.engine.calls import WATCH_SECONDS, EngineCalls, State
from core.engine.interpreter import Interpreter
from core.engine.process import EngineProcess
from core.engine.server import EngineBuilder
from core.engine.watchdog import Pulse
from core.errors import EngineDeadError, ExitCode, UserError

log = logging.getLogger("dovetail.engine")

UNASKED = -1  # the ticket of a question that nobody waits for


class Listener(Protocol):
    """Whom the thread that watches the engine tells what it hears. ``busy``: somebody behind it waits for the engine."""

    busy: bool

    def said(self, raw: bytes, message: wire.FromEngine) -> None: ...
    def ended(self, reason: str, *, again: bool) -> None: ...


class EngineClient(EngineCalls):
    """Owns the engine's process through all its lives.

    A thread watches the process and reads what it says. ``start``, ``wait_ready`` and ``close`` are for the launcher, outside
    any loop; the rest is for tasks of one loop.
    """

    def __init__(
        self,
        build: EngineBuilder,
        argument: Any,
        *,
        restarts: int = 0,
        step_timeout: float = 0.0,
        interpreter: Interpreter | None = None,
        askers: int = 1,
    ) -> None:
        """:param step_timeout: seconds after which a step that has not ended is told of; 0: never.
        :param interpreter: for the first life, one that runs already.
        :param askers: processes that ask it, this one first.
        """
        super().__init__(itertools.count(0, askers))
        self._life: EngineProcess | None = None
        self._interpreter = interpreter
        self._step_timeout = step_timeout
        self._pulse = Pulse(step_timeout)
        # Handed to the child as it starts, never sent over a socket.
        self._payload = pickle.dumps((build, argument, step_timeout))
        self._restarts = restarts
        self._restarted = 0
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        """Before ``start``: told by the thread of all that the engine says, and of the end of each of its lives."""
        self._listeners.append(listener)

    def pass_on(self, raw: bytes) -> None:
        """An encoded message of somebody else's to the engine, if it lives."""
        with self._lock:
            life = self._life if self._state is State.READY else None
        if life is not None:
            life.send_encoded(raw)

    # -- the launcher's part: no event loop --------------------------------------------------------------------------

    def start(self) -> None:
        """Start the process; it loads while the caller does something else."""
        self._life = EngineProcess(self._payload, self._interpreter)
        self._watcher.start()

    @property
    def trouble(self) -> str:
        return self._pulse.trouble

    @property
    def pid(self) -> int | None:
        return self._life.pid if self._life is not None else None

    def close(self, grace: float = 5.0) -> None:
        """End the process: a message, then its lifeline, then a signal. Safe to call twice."""
        with self._lock:
            listens = self._state is State.READY
            if self._state is not State.DEAD:
                self._state, self._detail = State.CLOSED, "the engine was stopped"
            life = self._life
        if life is None:
            return
        life.end(grace if listens else 0.0)  # while it loads it reads no messages
        if self._watcher.is_alive():
            self._watcher.join()

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while (life := self._life) is not None:
            try:
                failure = self._follow(life)
                again = self._after(life, failure)
                life.release()
            except Exception as error:
                self._give_up(life, error)
                return
            if not again:
                return

    def _give_up(self, life: EngineProcess, error: Exception) -> None:
        """Nobody reads any more what the engine says: whoever waits for it hears of that, and its process ends."""
        log.error("the engine can be watched no longer", exc_info=error)
        dead = EngineDeadError("the engine can be watched no longer; the server's log has the cause")
        with self._lock:
            if self._state in (State.LOADING, State.READY):
                self._state, self._detail, self._error = State.DEAD, str(dead), dead
            lives = {life, self._life or life}  # two, if the next one has been started
        for each in lives:
            self._in_loop(self._bury, each, str(dead))
        self._in_loop(self._mourn)
        for listener in self._listeners:
            listener.ended(str(dead), again=False)
        self._settled.set()
        for each in lives:
            with contextlib.suppress(Exception):  # it may be what broke
                each.end(0.0)
                each.release()

    def _follow(self, life: EngineProcess) -> wire.Failed | None:
        """Read one life's messages until it ends; what it said of its end."""
        failure = None
        self._pulse = Pulse(self._step_timeout)
        while True:
            if self._pulse.feel(busy=bool(self._streams or self._asked) or any(each.busy for each in self._listeners)):
                life.send(wire.AskStats(UNASKED))
            raw = life.receive(WATCH_SECONDS)
            if raw is not None:
                failure = self._take(life, raw) or failure
            elif not life.alive:
                for raw in life.last_words() if self._state is not State.CLOSED else ():
                    failure = self._take(life, raw) or failure
                return failure

    def _take(self, life: EngineProcess, raw: bytes) -> wire.Failed | None:
        try:
            message = wire.decode_from_engine(raw)
        except msgspec.MsgspecError as error:
            log.error("ignored a malformed message of the engine: %s", error)
            return None
        self._pulse.heard(of_step=isinstance(message, wire.Step))
        if isinstance(message, wire.Failed):
            return message
        if isinstance(message, wire.Ready) and not life.greet():
            life.end(0.0)  # it speaks and cannot hear
            return None
        self._hear(message)
        for listener in self._listeners:
            listener.said(raw, message)
        return None

    def _after(self, life: EngineProcess, failure: wire.Failed | None) -> bool:
        """One life is over: start the next one if that was agreed, and tell everybody who waits."""
        error = _why(life, failure)
        reason = told = str(error)  # in the log, and to whoever asks from elsewhere
        with self._lock:
            closed = self._state is State.CLOSED
            was_ready = self._settled.is_set()
            if was_ready and failure is not None and not failure.problems and not failure.said:
                told = "the engine broke; the server's log has the cause"
            # A user error is the same in the next life; so is whatever breaks the first load.
            again = not closed and was_ready and not isinstance(error, UserError) and self._restarted < self._restarts
            if again:
                self._restarted += 1
                count = f"{self._restarted} of {self._restarts}"
                self._state, self._detail = State.LOADING, f"{told}; it is being started again ({count})"
                log.error("%s; starting it again (%s)", reason, count)
            elif not closed:
                self._state, self._detail, self._error = State.DEAD, told, error
                if was_ready:
                    log.error("%s; it is not started again", reason)
        if failure is not None and failure.traceback:
            log.error("the engine's traceback:\n%s", failure.traceback.rstrip())
        self._in_loop(self._bury, life, told)
        if again:
            again = self._revive()
        for listener in self._listeners:
            listener.ended(self._detail, again=again)
        if not again:
            self._in_loop(self._mourn)
        self._settled.set()
        return again

    def _revive(self) -> bool:
        try:
            life = EngineProcess(self._payload)
        except OSError as error:
            with self._lock:
                self._state, self._detail = State.DEAD, f"the engine process could not be started again: {error}"
                self._error = EngineDeadError(self._detail)
            return False
        with self._lock:
            self._life = life
            if self._state is State.CLOSED:  # while it was being started: the caller of ``close`` did not see it
                life.end(0.0)
        return True


def _why(life: EngineProcess, failure: wire.Failed | None) -> Exception:
    if failure is None:
        return EngineDeadError(life.obituary())
    if failure.problems:
        return UserError(*failure.problems, exit_code=ExitCode(failure.exit_code))
    return EngineDeadError(f"the engine broke: {failure.what}")
