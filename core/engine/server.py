"""The engine's process: builds the engine, then serves its inbox until it is told to stop or its parent is gone."""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import os
import pickle
import select
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, cast

import msgspec
import zmq

from core.engine import wire
from core.engine.watchdog import telling_of_long_steps
from core.errors import INTERNAL, EngineDeadError, ExitCode, RequestError, UserError
from core.interfaces.engine import Answer, EngineLike
from core.interfaces.request import Request

log = logging.getLogger("dovetail.engine")

LIFELINE = 0  # standard input: the parent's end closes when the parent ends, however it ends
PARENT_CHECK_SECONDS = 0.5
FAREWELL_MS = 2000  # how long a last message may take to leave
IDLE_CHECK_MS = 500  # between two looks, while there is nothing to do, at what the engine runs on

EngineBuilder = Callable[[Any], EngineLike]


def main() -> None:
    """Entry of the child process. What ``core.engine.interpreter`` says comes by standard input, which then stays open."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal or a service manager signals everyone; the parent decides
    gc.disable()  # until the engine is built: what is imported stays, and walking it again and again would take a while
    try:
        while isinstance(said := pickle.load(sys.stdin.buffer), list):
            _import_ahead(said)
    except EOFError:  # there was nothing to run after all
        return
    folder, payload = said
    threading.Thread(target=hold_lifeline, args=(os.getppid(), folder), name="lifeline", daemon=True).start()
    with zmq.Context() as context:
        context.linger = FAREWELL_MS
        with context.socket(zmq.PULL) as inbox, context.socket(zmq.PUSH) as outbox:
            for socket in (inbox, outbox):
                socket.set_hwm(0)
            inbox.connect(f"ipc://{folder}/to_engine")
            outbox.connect(f"ipc://{folder}/from_engine")
            code = _live(inbox, outbox, payload)
    for stream in (sys.stdout, sys.stderr):  # None, where the server was started with it closed
        with contextlib.suppress(OSError):
            if stream is not None:
                stream.flush()
    os._exit(code)  # an interpreter's orderly end may wait for a framework's threads


def _import_ahead(modules: list[str]) -> None:
    for module in modules:
        with contextlib.suppress(Exception):  # who needs it will say what is wrong with it
            importlib.import_module(module)


def _live(inbox: zmq.Socket[bytes], outbox: zmq.Socket[bytes], payload: bytes) -> int:
    started = time.monotonic()
    try:
        build, argument, step_timeout = cast(tuple[EngineBuilder, Any, float], pickle.loads(payload))
        engine = build(argument)
        del argument, payload
        outbox.send(wire.encode(wire.Ready(time.monotonic() - started, engine.limits)))
        gc.collect()  # while the front end opens its door
        gc.freeze()  # what loading left is permanent: later collections need not walk it
        gc.enable()
        with telling_of_long_steps(lambda: engine.under_way, step_timeout):
            run(engine, inbox, outbox)
        return ExitCode.OK
    except UserError as error:
        outbox.send(wire.encode(wire.Failed(list(error.problems), error.exit_code)))
        return error.exit_code
    except BaseException as error:
        gone = isinstance(error, EngineDeadError)  # it says itself what has happened
        what = str(error) if gone else "".join(traceback.format_exception_only(error)).strip()
        outbox.send(wire.encode(wire.Failed([], ExitCode.FAILED, what, traceback.format_exc(), gone)))
        return ExitCode.FAILED


def run(engine: EngineLike, inbox: zmq.Socket[bytes], outbox: zmq.Socket[bytes]) -> None:
    """Serve until a ``Stop``. Blocks on the inbox when there is nothing to do, never while there is."""
    try:
        _serve(engine, inbox, outbox)
    except BaseException:
        try:
            engine.close()
        except Exception:  # as it may on a lost device; the parent is told what came first
            log.exception("the engine could not be closed either")
        raise
    engine.close()


def _serve(engine: EngineLike, inbox: zmq.Socket[bytes], outbox: zmq.Socket[bytes]) -> None:
    while True:
        while not engine.has_work and not inbox.poll(IDLE_CHECK_MS):
            engine.check()
        while True:
            try:
                raw = inbox.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            message = _decode(raw, outbox)
            if isinstance(message, wire.Stop):
                return
            if message is not None:
                _handle(engine, message, outbox)
        if engine.has_work:
            events = engine.step()
            if events:
                outbox.send(wire.encode(wire.Step(list(events))))
            for answer in engine.answers():
                outbox.send(wire.encode(_told(answer)))


def _handle(engine: EngineLike, message: wire.ToEngine, outbox: zmq.Socket[bytes]) -> None:
    if isinstance(message, wire.Submit):
        refusal = _add_all(engine, message.requests)
        if refusal is not None:
            outbox.send(wire.encode(refusal))
    elif isinstance(message, wire.Abort):
        for request_id in message.request_ids:
            engine.abort(request_id)
    elif isinstance(message, wire.AskStats):
        outbox.send(wire.encode(wire.Stats(message.ticket, engine.stats())))


def _told(answer: Answer) -> wire.Refused | wire.Embedded | wire.Scored:
    if answer.error is not None:
        return _refused([answer.request_id], answer.error)
    if answer.state is not None:
        return wire.Embedded(answer.request_id, answer.state.tobytes())
    return wire.Scored(answer.request_id, answer.logprobs or [])


def _add_all(engine: EngineLike, requests: list[Request]) -> wire.Refused | None:
    ids = [request.request_id for request in requests]
    for number, request in enumerate(requests):
        try:
            engine.add(request)
        except Exception as error:
            for added in ids[:number]:
                engine.abort(added)
            if isinstance(error, RequestError):
                return _refused(ids, error)
            log.exception("request %s could not be added", request.request_id)
            return wire.Refused(ids, INTERNAL, None, "internal_error", 500)
    return None


def _refused(ids: list[str], error: RequestError) -> wire.Refused:
    return wire.Refused(ids, error.message, error.param, error.code, error.status)


def _decode(raw: bytes, outbox: zmq.Socket[bytes]) -> wire.ToEngine | None:
    """A message that does not keep to its type is refused under the request ids it names, so that nobody waits for it."""
    try:
        return wire.decode_to_engine(raw)
    except msgspec.MsgspecError as error:
        log.error("ignored a malformed message: %s", error)
        reason = str(error)
    try:
        ids = [str(request["request_id"]) for request in msgspec.msgpack.decode(raw)["requests"]]
    except (msgspec.MsgspecError, KeyError, TypeError):
        return None
    outbox.send(wire.encode(wire.Refused(ids, f"malformed request: {reason}", None, "invalid_value", 400)))
    return None


def hold_lifeline(parent: int, folder: str) -> None:
    """End at once when the parent is gone, also in the middle of a long step.

    The pipe may be held open by a stray copy in another child of the parent; the parent's id tells then.
    """
    while os.getppid() == parent:
        readable, _, _ = select.select([LIFELINE], [], [], PARENT_CHECK_SECONDS)
        if readable and not os.read(LIFELINE, 1):
            break
    shutil.rmtree(folder, ignore_errors=True)  # there still, if the parent ended while this loaded
    os._exit(ExitCode.FAILED)
