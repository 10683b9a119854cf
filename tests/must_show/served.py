"""The real server, started as an operator starts it, on a free port."""

import queue
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]


class Server:
    """``python -m core.serve`` with some flags; ready when made."""

    def __init__(self, *flags, patience=240):
        command = [sys.executable, "-m", "core.serve", *flags, "--port", "0"]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.errors = []
        said = queue.Queue()
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout, said.put)),
            threading.Thread(target=self._read, args=(self.process.stderr, self.errors.append)),
        ]
        for reader in self._readers:
            reader.start()
        while not (line := said.get(timeout=patience)).startswith("listening on "):
            if not line:
                self.close()
                raise AssertionError("the server ended before it listened:\n" + "".join(self.errors))
        self.url = line.removeprefix("listening on ").strip()

    def _read(self, stream, put):
        for line in stream:
            put(line)
        put("")

    @property
    def engine(self):
        """The engine's process: the child that holds torch."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return max(children, key=lambda child: child.memory_info().rss)

    def terminate(self, timeout=60):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def close(self):
        try:
            if self.process.poll() is None:
                self.terminate()
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            for reader in self._readers:
                reader.join(10)
            self.process.stdout.close()
            self.process.stderr.close()


@contextmanager
def serving(*flags):
    server = Server(*flags)
    try:
        yield server
    finally:
        server.close()
