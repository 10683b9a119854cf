"""A rank that computes nothing: what it is told becomes lines in a file of its own. Runs in real child processes."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from core.engine.rank import Part, Rank
from core.errors import EngineDeadError, UserError
from core.interfaces.compute import Copying, HostPages, KVCache
from core.interfaces.graph import GraphBackend
from core.interfaces.parallel import Collective


@dataclass
class Setup:
    """``breaks``: which rank does what is in ``how``: "user error", "crash", "die", or in a step "fail", "leave"."""

    folder: str
    breaks: int = 0
    how: str = ""


def build(setup, rank):
    if rank == setup.breaks:
        if setup.how == "user error":
            raise UserError.of("there is not enough memory for the weights", "", "take a smaller model")
        if setup.how == "crash":
            raise ZeroDivisionError("the builder broke")
        if setup.how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
    said = Path(setup.folder) / f"rank{rank}"
    backend = Backend(said, setup if rank == setup.breaks else None)
    decoder = SimpleNamespace(backend=backend, spec=None, forward=backend.forward)
    return Rank(Part(decoder, Meeting(said), 100 - rank), 16, Direct())


class Meeting(Collective):
    def __init__(self, said):
        self.said = said

    def meet(self, folder):
        assert os.path.isdir(folder)
        say(self.said, "meet")

    def sum(self, array):
        raise NotImplementedError

    def gather(self, array):
        raise NotImplementedError


class Direct(GraphBackend):
    def prepare(self, forward, static_steps, draws=False):
        return forward


class Backend:
    def __init__(self, said, breaks):
        self.said = said
        self.breaks = breaks

    def kv_cache(self, spec, num_pages, page_size):
        say(self.said, f"kv {num_pages} {page_size}")
        return Cache(self.said)

    def upload(self, batch, spec, kv):
        return batch

    def forward(self, step, kv):
        if self.breaks is not None and self.breaks.how == "fail":
            raise ArithmeticError("bad numbers")
        if self.breaks is not None and self.breaks.how == "leave":
            raise EngineDeadError("the others are gone")
        say(self.said, f"step {step.token_ids.tolist()} {len(step.sampling)}")


class Cache(KVCache):
    num_pages, page_size, nbytes = 100, 16, 1600

    def __init__(self, said):
        self.said = said

    def host_pages(self, number):
        return Places(self.said, number)


class Places(HostPages):
    def __init__(self, said, number):
        self.said = said
        self.number = number

    def save(self, pages, places):
        return Slow(self.said, f"save {pages.tolist()} {places.tolist()}")

    def restore(self, places, pages):
        return Slow(self.said, f"restore {places.tolist()} {pages.tolist()}")


class Slow(Copying):
    """Done when a file lies beside what the rank says."""

    def __init__(self, said, what):
        self.said = said
        self.what = what

    def done(self):
        return Path(f"{self.said}.may").exists()

    def wait(self):
        while not self.done():
            time.sleep(0.005)
        say(self.said, self.what)


def say(said, what):
    with open(said, "a") as file:
        file.write(what + "\n")
