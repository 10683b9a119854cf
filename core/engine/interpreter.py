"""The interpreter that becomes the engine's process. It is started before anybody knows what it is to run.

So it imports while its parent still reads what was said. This module imports next to nothing itself.
"""

from __future__ import annotations

import contextlib
import pickle
import subprocess
import sys
from collections.abc import Sequence
from typing import IO, Any

BOOTSTRAP = "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); from core.engine.server import main; main()"


class Interpreter:
    """A plain one instead of a fork: nothing of the parent's threads, and no second run of its main module.

    It ends with its parent, and with the block: whoever has it run something waits for that before.
    """

    def __init__(self) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-c", BOOTSTRAP, "dovetail-engine"], stdin=subprocess.PIPE, start_new_session=True
        )
        assert self.child.stdin is not None
        self.lifeline: IO[bytes] = self.child.stdin
        self._say(sys.path)

    def expect(self, modules: Sequence[str]) -> None:
        """Import these; what cannot be is no matter yet."""
        self._say(list(modules))

    def become(self, folder: str, payload: bytes) -> None:
        """``payload``: pickled (builder, argument, step timeout) of the engine; ``folder``: where the sockets to it lie."""
        self._say((folder, payload))

    def _say(self, what: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # a child that is gone already is noticed by who waits for it
            self.lifeline.write(pickle.dumps(what))
            self.lifeline.flush()

    def cut_lifeline(self) -> None:
        with contextlib.suppress(OSError):
            self.lifeline.close()

    def __enter__(self) -> Interpreter:
        return self

    def __exit__(self, *_: object) -> None:
        self.cut_lifeline()
        if self.child.poll() is None:
            self.child.kill()
            self.child.wait()
