"""The contract of front ends: they answer, they stop when told to, and they notice when the engine is gone."""

from __future__ import annotations

import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType

import pytest

from core.errors import ExitCode
from core.interfaces.frontend import FrontEnd, Service
from core.testing.contract import Contract
from core.testing.fakes import FakeService

ANSWER = "the answer is forty-two"


class FrontEndContract(Contract, kit=True):
    """Give ``make``, ``ready`` and ``ask``.

    ``make`` is called once a test; a server should listen on ``self.port``, a free port of 127.0.0.1. ``ready`` says whether
    the door is open; it is asked again and again until it says so. ``ask`` sends one prompt through the door and returns all
    the text that came back, joined; both run in a thread beside the front end.

    The front end runs in the test's main thread, since a door owns the process's signals, as it does when it is launched.
    """

    patience: float = 20.0  # seconds after which a front end counts as hung

    def make(self) -> FrontEnd:
        """A new front end, as your offer's ``create`` makes it, listening on ``self.port``."""
        raise NotImplementedError(f"{type(self).__name__} must define make()")

    def ready(self) -> bool:
        """Whether a request would be taken now. Errors count as no."""
        raise NotImplementedError(f"{type(self).__name__} must define ready()")

    def ask(self, prompt: str) -> str:
        """Send one prompt and return the whole answer."""
        raise NotImplementedError(f"{type(self).__name__} must define ask(prompt)")

    @pytest.fixture(autouse=True)
    def port_of_this_test(self) -> None:
        self.port = free_port()

    @pytest.fixture
    def service(self) -> FakeService:
        return FakeService(ANSWER)

    # --- what is promised -------------------------------------------------------------------------------------------

    def test_it_answers_a_request(self, service: FakeService) -> None:
        answers: list[str] = []

        def visit() -> None:
            answers.append(self.ask("what is it?"))
            stop()

        assert self.serve(service, visit) == ExitCode.OK
        assert ANSWER in answers[0]
        assert "what is it?" in service.asked[0][0], "the prompt did not reach the service"

    def test_it_answers_one_after_another(self, service: FakeService) -> None:
        answers: list[str] = []

        def visit() -> None:
            answers.extend(self.ask(f"question {number}") for number in range(3))
            stop()

        assert self.serve(service, visit) == ExitCode.OK
        assert all(ANSWER in answer for answer in answers)
        assert len(service.asked) == 3
        assert not service.running

    def test_it_stops_when_told_to(self, service: FakeService) -> None:
        assert self.serve(service, stop) == ExitCode.OK
        assert service.drained, "a stop drains the service before run() returns"

    def test_a_running_request_is_finished_at_a_stop(self, service: FakeService) -> None:
        answers: list[str] = []
        service.hold()

        def visit() -> None:
            asking = threading.Thread(target=lambda: answers.append(self.ask("slow")), daemon=True)
            asking.start()
            until(lambda: bool(service.running), self.patience, "the request did not reach the service")
            stop()
            until(lambda: service.draining, self.patience, "a stop did not drain the service while a request was running")
            service.go_on()
            asking.join(self.patience)

        assert self.serve(service, visit) == ExitCode.OK
        assert answers, "the answer of a running request was cut off by the stop"
        assert ANSWER in answers[0]

    def test_it_ends_when_the_engine_is_gone(self, service: FakeService) -> None:
        assert self.serve(service, lambda: service.die("the engine died in a test")) == ExitCode.ENGINE_DIED

    def serve(self, service: Service, visit: Callable[[], None]) -> ExitCode:
        """Run the front end until ``visit``, in a thread of its own, has told it to stop. Its failures are raised here."""
        failures: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        returned = threading.Event()

        def visitor() -> None:
            try:
                until(self.is_ready, self.patience, "the front end did not open its door")
                visit()
            except BaseException as failure:  # it is raised again in the main thread
                failures.put(failure)
                if not returned.is_set():
                    stop()
            if not returned.wait(self.patience):
                os.kill(os.getpid(), signal.SIGUSR1)

        thread = threading.Thread(target=visitor, daemon=True)
        with (
            raising(signal.SIGTERM, "SIGTERM was left to the system: a front end handles it and returns"),
            raising(signal.SIGUSR1, f"run() did not return within {self.patience:g} s after the stop"),
        ):
            front_end = self.make()
            thread.start()
            try:
                code = front_end.run(service)
            finally:
                returned.set()
                thread.join(self.patience)
        if not failures.empty():
            raise failures.get()
        return code

    def is_ready(self) -> bool:
        try:
            return self.ready()
        except Exception:  # not yet: connection refused, a 503
            return False


def stop() -> None:
    """What a supervisor does."""
    os.kill(os.getpid(), signal.SIGTERM)


def until(condition: Callable[[], bool], patience: float, otherwise: str) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class raising:  # noqa: N801 - reads as the context manager it is
    """While inside, a signal that nobody handles raises AssertionError in the main thread instead of ending the tests."""

    def __init__(self, number: signal.Signals, message: str) -> None:
        self.number, self.message = number, message

    def __enter__(self) -> None:
        self.before = signal.signal(self.number, self.raise_it)

    def __exit__(self, *error: object) -> None:
        signal.signal(self.number, self.before)

    def raise_it(self, number: int, frame: FrameType | None) -> None:
        raise AssertionError(self.message)
