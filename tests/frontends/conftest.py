import json
import queue
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


class Served:
    """A fake service behind the real front end, in a process of its own. ``said`` waits for a line of its output."""

    def __init__(self, **options):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.frontends.fake_service", json.dumps(options)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines, self.errors = queue.Queue(), []
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout, self.lines.put)),
            threading.Thread(target=self._read, args=(self.process.stderr, self.errors.append)),
        ]
        for reader in self._readers:
            reader.start()
        self.url = self.said("listening on ").removeprefix("listening on ")

    def _read(self, stream, put):
        for line in stream:
            put(line.rstrip("\n"))
        put("")

    def said(self, beginning, timeout=20):
        while True:
            line = self.lines.get(timeout=timeout)
            if line.startswith(beginning):
                return line
            if line == "":
                raise AssertionError(f"the server ended without saying {beginning!r}: {self.errors}")

    def wait(self, timeout=20):
        return self.process.wait(timeout)

    def close(self):
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(15)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            for reader in self._readers:
                reader.join(5)
            self.process.stdout.close()
            self.process.stderr.close()


@contextmanager
def serving(**options):
    served = Served(**options)
    try:
        yield served
    finally:
        served.close()


@pytest.fixture(scope="session")
def served():
    with serving() as server:
        yield server
