"""From a plan to something that runs: a server with its engine in a process beside it, or an engine in this process."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from core.compose.plan import Plan, by_origin
from core.errors import EngineDeadError, ExitCode, UserError, forbidden
from core.interfaces.frontend import ChatTemplate, FrontEnd, ModelCard, Tokenizer
from core.json_log import JsonLines
from core.text.local import Continuation, LocalService, of_prompt

if TYPE_CHECKING:
    from core.engine.calls import EngineCalls
    from core.engine.engine import Engine
    from core.engine.interpreter import Interpreter
    from core.engine.sharing import Place
    from core.plugin_manager import PluginManager
    from core.text.service import TextService

__all__ = ["Continuation", "LocalService", "of_prompt", "open_local", "open_service", "serve"]

log = logging.getLogger("dovetail")

OTHERS_END = 5.0  # seconds that the other processes at a door may take behind their calls


def serve(plan: Plan, interpreter: Interpreter | None = None) -> ExitCode:
    """Serve until the front end returns. The engine loads in its own process while this one prepares the text side.

    :param interpreter: that runs already, and is to become the engine's process.
    :raises UserError: when the model or the front end cannot be made for a reason the user can mend.
    """
    began = time.monotonic()
    show_log(plan)
    from core.compose.build import create_front_end, fetched
    from core.engine.client import EngineClient
    from core.engine.sharing import Sharing
    from core.plugin_manager import PluginManager

    with _sigterm_ends(), _telling_origins(plan), contextlib.ExitStack() as ending:
        client = sharing = None
        manager = PluginManager.load_only(plan.plugins)
        try:
            front_end = create_front_end(plan, manager)  # first: a port in use is told before anything is fetched or loaded
            ending.callback(front_end.close)
            plan = fetched(plan)  # here once, where Ctrl-C is heard, instead of by two processes at the same time
            askers = front_end.processes
            client = EngineClient(build_here, plan, interpreter=interpreter, askers=askers, **_watching(plan))
            sharing = Sharing(client, askers) if askers > 1 else None
            client.start()
            if sharing is not None:
                for number in range(1, askers):
                    with front_end.beside(number) as (other, descriptors):
                        sharing.start(number, serve_beside, (plan, other), descriptors)
            service = _serving(_text_service(client, plan, manager), plan, manager)
            log.info("ready in %.1f s: %s on %s", time.monotonic() - began, service.card.name, plan.facts["device.kind"])
            code = front_end.run(service)
            return ExitCode.ENGINE_DIED if client.dead and code is ExitCode.OK else code
        except EngineDeadError as error:
            log.error("%s", error)
            return ExitCode.ENGINE_DIED
        except (KeyboardInterrupt, _Terminated):
            return ExitCode.OK
        finally:
            if sharing is not None:
                sharing.end_others(plan.settings["drain_timeout"] + OTHERS_END)
            if client is not None:
                client.close()
            if sharing is not None:
                sharing.close()


def serve_beside(place: Place, what: tuple[Plan, FrontEnd]) -> ExitCode:
    """What each other process does that answers at the same door."""
    plan, front_end = what
    show_log(plan)
    from core.engine.sharing import SharedEngine
    from core.plugin_manager import PluginManager

    manager = PluginManager.load_only(plan.plugins)
    engine = SharedEngine(place)
    engine.start()
    try:
        return front_end.run(_serving(_text_service(engine, plan, manager), plan, manager))
    except EngineDeadError:  # the first process tells of it
        return ExitCode.ENGINE_DIED
    finally:
        engine.close()


def _serving(service: TextService, plan: Plan, manager: PluginManager) -> TextService:
    from core.compose.build import page_folder
    from core.compose.composer import PlanComposer

    service.page, service.composer = page_folder(plan, manager), PlanComposer(plan)
    return service


def build_here(plan: Plan) -> Engine:
    """What the engine's process does first."""
    show_log(plan)
    from core.compose.build import build_engine

    try:
        return build_engine(plan)
    except PermissionError as error:
        raise forbidden(error) from error


def open_local(plan: Plan) -> LocalService:
    """The plan's engine in this process, without a front end: synchronous, many prompts at a time.

    :raises UserError: as ``serve`` does.
    """
    for warning in plan.warnings:
        log.warning("%s", warning)
    from core.compose.build import build_engine, fetched
    from core.plugin_manager import PluginManager

    with _telling_origins(plan):
        manager = PluginManager.load_only(plan.plugins)
        plan = fetched(plan)
        tokenizer, chat_template, card = _text_side(plan, manager)
        return LocalService(build_engine(plan, manager), tokenizer, chat_template, card)


@contextlib.asynccontextmanager
async def open_service(plan: Plan) -> AsyncIterator[TextService]:
    """The plan's engine in a process of its own, as a server has it, without a front end. It ends with the block.

    :raises UserError: as ``serve`` does.
    :raises EngineDeadError: when the engine broke while it loaded.
    """
    for warning in plan.warnings:
        log.warning("%s", warning)
    from core.compose.build import fetched
    from core.engine.client import EngineClient
    from core.plugin_manager import PluginManager

    with _telling_origins(plan):
        manager = PluginManager.load_only(plan.plugins)
        plan = await asyncio.to_thread(fetched, plan)
        client = EngineClient(build_here, plan, **_watching(plan))
        try:
            client.start()
            service = await asyncio.to_thread(_text_service, client, plan, manager)
        except BaseException:
            client.close()  # ends also the wait of a thread whose caller was cancelled
            raise
    try:
        yield service
    finally:
        await asyncio.to_thread(client.close)


def _watching(plan: Plan) -> dict[str, Any]:
    return {"restarts": plan.settings["engine_restarts"], "step_timeout": plan.settings["step_timeout"]}


def show_log(plan: Plan) -> None:
    """Send the logger ``dovetail`` to standard error, unless someone has said already where it goes."""
    log.setLevel(plan.settings["log_level"].upper())
    if not log.handlers and not logging.getLogger().handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(
            JsonLines()
            if plan.settings["log_format"] == "json"
            else logging.Formatter("%(asctime)s %(levelname).1s %(name)s: %(message)s", "%H:%M:%S")
        )
        log.addHandler(handler)


@contextlib.contextmanager
def _telling_origins(plan: Plan) -> Iterator[None]:
    """What goes wrong only now is told like what composing refuses: with the flag, variable or line that set it."""
    try:
        yield
    except UserError as error:
        located = (by_origin(problem, plan.origins) for problem in error.problems)
        raise UserError(*located, exit_code=error.exit_code) from error


def _text_service(client: EngineCalls, plan: Plan, manager: PluginManager) -> TextService:
    """The text side is prepared while the engine loads."""
    from core.compose.build import parsers
    from core.text.service import TextService

    tokenizer, chat_template, card = _text_side(plan, manager)
    limits = client.wait_ready()
    card = dataclasses.replace(card, at_once=limits.at_once)
    service = TextService(client, tokenizer, chat_template, card, limits)
    service.tool_parser, service.reasoning_parser = parsers(plan, manager)
    return service


def _text_side(plan: Plan, manager: PluginManager) -> tuple[Tokenizer, ChatTemplate | None, ModelCard]:
    from core.compose.build import checkpoint_formats
    from core.models.loading import read_config
    from core.models.sources import text_files
    from core.text import generation_defaults
    from core.text.chat_template import load_chat_template
    from core.text.tokenizer import load_tokenizer

    folder = text_files(plan.model, plan.settings)
    tokenizer = load_tokenizer(folder, read_config(plan.model, checkpoint_formats(plan, manager)))
    settings = plan.settings
    card = ModelCard(
        name=settings["model"],
        served_names=tuple(settings["served_model_name"]) or (settings["model"],),
        max_model_len=plan.facts["settings.max_model_len"],
        vocab=plan.spec.vocab,
        created=int(time.time()),
        defaults=generation_defaults(plan.model),
    )
    template = load_chat_template(folder, settings["chat_template"], tokenizer)
    return tokenizer, template or load_chat_template(plan.model, None, tokenizer), card


class _Terminated(BaseException):
    """SIGTERM came where no front end listens to it."""


@contextlib.contextmanager
def _sigterm_ends() -> Iterator[None]:
    """Until a front end takes SIGTERM over, it unwinds as Ctrl-C does, so that the engine is ended in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: Any) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: the way out takes a few seconds at most
        raise _Terminated

    usual = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, usual)
