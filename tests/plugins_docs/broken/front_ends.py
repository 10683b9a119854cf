"""A door of a few dozen lines, and what the contract has to say about doors that do not close."""

import asyncio
import signal
import socket

from core.errors import EngineDeadError, ExitCode
from core.interfaces.frontend import FrontEnd
from core.interfaces.request import SamplingParams
from core.testing import FrontEndContract


class Line(FrontEnd):
    """One prompt a connection, up to a newline; answers until the connection closes."""

    def __init__(self, port):
        self.port = port
        self.number = 0

    def run(self, service):
        return asyncio.run(self.serve(service))

    async def serve(self, service):
        self.told, self.service = asyncio.Event(), service
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.stop)
        server = await asyncio.start_server(self.visit, "127.0.0.1", self.port)
        told, dead = asyncio.create_task(self.told.wait()), asyncio.create_task(service.wait_dead())
        try:
            await asyncio.wait(self.reasons_to_end(told, dead), return_when=asyncio.FIRST_COMPLETED)
            server.close()
            if dead.done():
                return ExitCode.ENGINE_DIED
            await self.finish()
            return ExitCode.OK
        finally:
            for task in (told, dead):
                task.cancel()
            loop.remove_signal_handler(signal.SIGTERM)

    def stop(self):
        self.told.set()

    def reasons_to_end(self, told, dead):
        return told, dead

    async def finish(self):
        await self.service.drain(10.0)
        await asyncio.sleep(0.05)  # the last answer is on its way out

    async def visit(self, reader, writer):
        line = await reader.readline()
        if line:
            await self.answer(line.decode().strip(), writer)
        writer.close()

    async def answer(self, prompt, writer):
        self.number += 1
        ids = self.service.tokenizer.encode(prompt)
        try:
            async for delta in self.service.generate(ids, SamplingParams(max_tokens=100), request_id=f"r{self.number}"):
                writer.write(delta.text.encode())
        except EngineDeadError:
            pass


class Contract(FrontEndContract):
    __test__ = False
    patience = 2.0
    implementation = Line

    def make(self):
        return self.implementation(self.port)

    def ready(self):
        with socket.create_connection(("127.0.0.1", self.port), timeout=2):
            return True

    def ask(self, prompt):
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(prompt.encode() + b"\n")
            return b"".join(iter(lambda: connection.recv(4096), b"")).decode()


class TestSound(Contract):
    __test__ = True


class TestAnswersNothing(Contract):
    __test__ = True
    caught_by = "test_it_answers_a_request"

    class implementation(Line):
        async def answer(self, prompt, writer):
            writer.write(b"no")


class TestAnswersOnce(Contract):
    __test__ = True
    caught_by = "test_it_answers_one_after_another"

    class implementation(Line):
        async def answer(self, prompt, writer):
            if self.number == 0:
                await super().answer(prompt, writer)


class TestLeavesSigtermToTheSystem(Contract):
    __test__ = True
    caught_by = "test_it_stops_when_told_to"

    class implementation(Line):
        async def serve(self, service):
            loop = asyncio.get_running_loop()
            loop.add_signal_handler = lambda *arguments: None
            return await super().serve(service)


class TestDoesNotStop(Contract):
    __test__ = True
    caught_by = "test_it_stops_when_told_to"

    class implementation(Line):
        def stop(self):
            pass


class TestDoesNotDrain(Contract):
    __test__ = True
    caught_by = "test_a_running_request_is_finished_at_a_stop"

    class implementation(Line):
        async def finish(self):
            pass


class TestWaitsForADeadEngine(Contract):
    __test__ = True
    caught_by = "test_it_ends_when_the_engine_is_gone"

    class implementation(Line):
        def reasons_to_end(self, told, dead):
            return (told,)
