"""The front end itself: uvicorn around the application, from the bound socket to the exit code."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import shutil
import signal
import socket
import ssl
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING

import uvicorn

from core.errors import EngineDeadError, ExitCode, UserError
from core.interfaces.frontend import FrontEnd, Service
from frontends.openai_http.app import create_app
from frontends.openai_http.control import answers
from frontends.openai_http.door import Door
from frontends.openai_http.errors import StoppingError
from frontends.openai_http.keys import keys_of, operators_of
from frontends.openai_http.protocol import HttpProtocol
from frontends.openai_http.settings import HttpSettings
from frontends.openai_http.together import Together, private_folder
from frontends.openai_http.tracing import provider_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

log = logging.getLogger("dovetail.http")

DEATH_NOTICE = 1.0  # seconds for which a server whose engine died still answers, with 503, before it goes
FLUSH_TIMEOUT = 2  # seconds for clients to take what has been written when nothing more will be
KEEP_ALIVE = 75  # seconds; longer than clients keep an idle connection, so that it is they who close it
BACKLOG = 2048


class OpenAIServer(FrontEnd):
    """``run`` serves until SIGTERM, SIGINT, ``stop()`` or the engine's death.

    :raises UserError: when the address cannot be listened on.
    """

    def __init__(self, section: HttpSettings, *, drain_timeout: float, other: Other | None = None) -> None:
        """``other``: it answers beside the first process, and takes of it what that has bound."""
        self._section = section
        self._drain_timeout = drain_timeout
        self.processes = section.api_server_count
        self._together: Together | None = None
        self._traces: TracerProvider | None = None
        self._metrics: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._hurry = asyncio.Event()
        if other is not None:
            self._bound = socket.socket(fileno=other.descriptor)
            self._together, self._metrics_port = other.together, other.metrics_port
        else:
            _check_certificate(section)
            operators_of(section)
            keys_of(section)  # now, so that a server that would let in everybody or nobody loads no model
            self._bound = _bind(section.host, section.port)  # now, so that a port in use is told before a model is loaded
        try:
            if other is None:
                self._open()
            if section.otlp_traces_endpoint is not None:
                self._traces = provider_of(section.otlp_traces_endpoint)  # last: it starts a thread
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        """What the first process has for all of them."""
        section = self._section
        if self.processes > 1:
            host, port = self._bound.getsockname()[:2]
            self._bound.close()  # nobody had the port: now it is taken by several, each with connections of its own
            self._bound = _bind(host, port, shared=True)
            self._together = Together(private_folder(), 0, self.processes)
        if section.metrics_port is not None:
            self._metrics = _bind(section.host, section.metrics_port, "metrics_port")
        self._metrics_port = None if self._metrics is None else self._metrics.getsockname()[1]

    @contextlib.contextmanager
    def beside(self, number: int) -> Iterator[tuple[Other, tuple[int, ...]]]:
        assert self._together is not None
        with _bind(*self._bound.getsockname()[:2], shared=True) as bound:
            together = self._together.beside(number)
            yield Other(self._section, self._drain_timeout, together, self._metrics_port, bound.fileno()), (bound.fileno(),)

    def run(self, service: Service) -> ExitCode:
        """:raises UserError: when another program has taken the address since."""
        with contextlib.closing(self):
            _listen(self._bound, self._section.host, self._section.port)
            if self._metrics is not None:
                _listen(self._metrics, self._section.host, self._section.metrics_port or 0, "metrics_port")
            _share_log()
            return asyncio.run(self._run(service, self._bound, self._metrics))

    def close(self) -> None:
        if self._together is not None and self._first:
            shutil.rmtree(self._together.folder, ignore_errors=True)
        self._bound.close()
        if self._metrics is not None:
            self._metrics.close()
        if self._traces is not None:
            self._traces.shutdown()  # what has not been sent yet is

    def stop(self) -> None:
        """What SIGTERM does, from any thread; nothing when the server does not run."""
        if self._loop is not None and self._stop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has closed meanwhile
                self._loop.call_soon_threadsafe(self._stop.set)

    def _heard(self) -> None:
        """A signal: the first one stops the server, the next one does not wait for anybody."""
        assert self._stop is not None
        (self._hurry if self._stop.is_set() else self._stop).set()

    async def _run(self, service: Service, bound: socket.socket, metrics: socket.socket | None) -> ExitCode:
        self._loop, self._stop, self._hurry = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        app = create_app(service, self._section, self._metrics_port, self._traces, self._together)
        door: Door = app.state.door
        section = self._section
        secure = section.ssl_certfile is not None
        server = _Uvicorn(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                http=HttpProtocol,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=_whole(self._drain_timeout + FLUSH_TIMEOUT),
                backlog=BACKLOG,
                ssl_certfile=section.ssl_certfile,
                ssl_keyfile=section.ssl_keyfile,
            ),
            announcement=f"listening on {_url(bound, secure)}" if self._first else "",
        )
        if metrics is not None:
            log.info("metrics on %s/metrics", _url(metrics, secure))
        serving = asyncio.create_task(server.serve(sockets=[bound, *([metrics] if metrics is not None else [])]))
        stopping = asyncio.create_task(self._stop.wait())
        dying = asyncio.create_task(service.wait_dead())
        async with self._with_others(door):
            try:
                await asyncio.wait((serving, stopping, dying), return_when=asyncio.FIRST_COMPLETED)
                if stopping.done() and not serving.done():
                    await self._drain(service, door, server, dying)
                if dying.done():
                    await self._mourn(door, server, dying.result())
                    await serving
                    return ExitCode.ENGINE_DIED
                await serving
                return ExitCode.OK
            finally:
                for task in (serving, stopping, dying):
                    task.cancel()
                await asyncio.gather(serving, stopping, dying, return_exceptions=True)

    @property
    def _first(self) -> bool:
        return self._together is None or self._together.number == 0

    @contextlib.asynccontextmanager
    async def _with_others(self, door: Door) -> AsyncIterator[None]:
        """Signals are heard, and what the other processes at this door ask."""
        assert self._loop is not None
        assert self._stop is not None
        stop, together = self._stop, self._together

        async def told_to_stop(_: None) -> None:
            stop.set()

        async with contextlib.AsyncExitStack() as leaving:
            leaving.enter_context(_signals(self._loop, self._heard))
            if together is not None:
                await leaving.enter_async_context(together.answering({**answers(door), "stop": told_to_stop}))
                if not self._first:
                    door.paused = any(await together.ask("is_paused"))  # it may have been said before this one listened
            yield

    async def _drain(self, service: Service, door: Door, server: _Uvicorn, dying: asyncio.Task[str]) -> None:
        most = "" if math.isinf(self._drain_timeout) else f"at most {self._drain_timeout:g} s "
        log.info("stopping: waiting %sfor what is running", most)
        stopping = StoppingError("the server is stopping")
        door.close(stopping)
        server.should_exit = True
        if self._together is not None and self._first:
            await self._together.ask("stop")
        draining = asyncio.create_task(service.drain(self._drain_timeout))
        hurrying = asyncio.create_task(self._hurry.wait())
        patience = self._drain_timeout + FLUSH_TIMEOUT
        await asyncio.wait((draining, hurrying, dying), timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        draining.cancel()
        hurrying.cancel()
        await asyncio.gather(draining, hurrying, return_exceptions=True)
        if dying.done():
            return
        door.end_calls(stopping)
        server.force_exit = self._hurry.is_set()

    async def _mourn(self, door: Door, server: _Uvicorn, reason: str) -> None:
        dead = EngineDeadError(reason)
        door.close(dead)
        door.end_calls(dead)
        await asyncio.sleep(0 if server.should_exit else DEATH_NOTICE)
        server.config.timeout_graceful_shutdown = FLUSH_TIMEOUT
        server.should_exit = True


class Other(FrontEnd):
    """The server in another process than the first."""

    def __init__(
        self, section: HttpSettings, drain_timeout: float, together: Together, metrics_port: int | None, descriptor: int
    ) -> None:
        self.section = section
        self.drain_timeout = drain_timeout
        self.together = together
        self.metrics_port = metrics_port
        self.descriptor = descriptor

    def run(self, service: Service) -> ExitCode:
        return OpenAIServer(self.section, drain_timeout=self.drain_timeout, other=self).run(service)


class _Uvicorn(uvicorn.Server):
    """Leaves signals to the front end, and says when it listens, where there is something to say."""

    def __init__(self, config: uvicorn.Config, *, announcement: str) -> None:
        super().__init__(config)
        self._announcement = announcement

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if not self._announcement:
            return
        try:
            if sys.stdout is not None:
                sys.stdout.write(f"{self._announcement}\n")
                sys.stdout.flush()
                return
        except OSError:  # a full disk, a reader that has left
            pass
        log.info("%s", self._announcement)


@contextlib.contextmanager
def _signals(loop: asyncio.AbstractEventLoop, heard: Callable[[], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        loop.add_signal_handler(number, heard)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)  # the launcher's own again, while it ends the engine


def _bind(host: str, port: int, setting: str = "port", *, shared: bool = False) -> socket.socket:
    """``shared``: with other sockets of this user's that say so too; connections go to one or the other of them."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError):
        raise UserError.of(
            f"the host {host!r} is no address and no name that can be resolved",
            "openai_http.host",
            "--host 127.0.0.1 for this machine only",
            "--host 0.0.0.0 for every interface",
        ) from None
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise _unusable(host, port, error, setting) from None
    return bound


def _listen(bound: socket.socket, host: str, port: int, setting: str = "port") -> None:
    """Not before there is somebody to answer: until then a client is refused instead of kept waiting."""
    try:
        bound.listen(BACKLOG)
    except OSError as error:  # two servers that start at the same time may both have bound
        raise _unusable(host, port, error, setting) from None


def _unusable(host: str, port: int, error: OSError, setting: str) -> UserError:
    flag = f"--{setting.replace('_', '-')}"
    match error.errno:
        case errno.EADDRINUSE:
            return UserError.of(
                f"port {port} on {host} is in use by another program",
                f"openai_http.{setting}",
                f"{flag} {port + 1 if port < 65535 else 8000}, or another free one",
                f"{flag} 0 to have a free one picked",
                "stop the program that has it",
            )
        case errno.EACCES | errno.EPERM:
            return UserError.of(
                f"port {port} may not be listened on by this user",
                f"openai_http.{setting}",
                f"{flag} 8000, or another above 1023",
            )
        case errno.EADDRNOTAVAIL:
            return UserError.of(
                f"{host} is no address of this machine",
                "openai_http.host",
                "--host 127.0.0.1 for this machine only",
                "--host 0.0.0.0 for every interface",
            )
        case _:
            reason = error.strerror or str(error)
            return UserError.of(
                f"cannot listen on {host}:{port}: {reason.lower()}", "openai_http.host", "give another --host or --port"
            )


def _whole(seconds: float) -> int | None:
    return math.ceil(seconds) if math.isfinite(seconds) else None


def _share_log() -> None:
    """What uvicorn warns of looks like every other line, and a client that was cut off at a stop is no traceback."""
    theirs, ours = logging.getLogger("uvicorn"), logging.getLogger("dovetail")
    theirs.setLevel(logging.WARNING)
    if not theirs.handlers:
        theirs.handlers = list(ours.handlers)
    logging.getLogger("uvicorn.error").addFilter(_no_cut_offs)


def _no_cut_offs(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def _check_certificate(section: HttpSettings) -> None:
    """:raises UserError: for files that are none, or do not belong together."""
    if section.ssl_certfile is None:
        if section.ssl_keyfile is not None:
            raise UserError.of("a private key needs its certificate", "openai_http.ssl_keyfile", "--ssl-certfile FILE")
        return
    for name, path in (("ssl_certfile", section.ssl_certfile), ("ssl_keyfile", section.ssl_keyfile)):
        try:
            if path is not None:
                open(path, "rb").close()
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            flag = f"--{name.replace('_', '-')} FILE"
            raise UserError.of(f"{path} cannot be read: {why}", f"openai_http.{name}", f"name a PEM file: {flag}") from None
    try:
        # Without a password one that is needed would be asked for at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(section.ssl_certfile, section.ssl_keyfile, password="")
    except (OSError, ValueError) as error:
        raise UserError.of(
            f"the certificate and its key cannot be used: {getattr(error, 'reason', None) or error}",
            "openai_http.ssl_certfile",
            "two PEM files that belong together, the key without a password",
        ) from None


def _url(bound: socket.socket, secure: bool) -> str:
    host, port = bound.getsockname()[:2]
    scheme = "https" if secure else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
