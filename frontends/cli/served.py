"""``python -m frontends.cli.served``: the server of a command that waits for it, and that it does not outlive.

Its standard input is a lifeline: it closes with the command, however that ends. Nothing is written to it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading


def hold_lifeline() -> None:
    """From now on: when standard input closes, end as by SIGTERM."""
    threading.Thread(target=_end_with_it, name="lifeline", daemon=True).start()


def _end_with_it() -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock an interpreter that ends would wait for
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    hold_lifeline()
    from core.serve import main

    sys.exit(main())
