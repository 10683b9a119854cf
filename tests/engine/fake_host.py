"""Host memory for the fake runner's pages, whose copies are made when they like: at once, late, or only when waited for."""

from __future__ import annotations

import random

import numpy as np

from core.interfaces.compute import Copying, HostPages, KVCache


class FakeKV(KVCache):
    """``patience``: how often on average it is asked in vain whether the next copy is done."""

    def __init__(self, runner, pages, page_size, seed=0, patience=2):
        self.runner, self.num_pages, self.page_size, self.nbytes = runner, pages, page_size, pages
        self.draw, self.patience = random.Random(seed), patience

    def host_pages(self, number):
        self.host = FakeHost(self, number)
        return self.host


class FakeHost(HostPages):
    def __init__(self, kv, number):
        self.kv, self.number, self.queue, self.closed = kv, number, [], False
        self.tokens = np.full((number, kv.page_size), -2)
        self.positions = np.full((number, kv.page_size), -2)
        self.saved = self.restored = 0

    def save(self, pages, places):
        self.saved += len(pages)
        return self._ask(pages, places, True)

    def restore(self, places, pages):
        self.restored += len(pages)
        return self._ask(pages, places, False)

    def close(self):
        while self.queue:
            self.queue[0].make()
        self.closed = True

    def _ask(self, pages, places, out):
        assert len(pages) == len(places) == len(set(pages.tolist())) == len(set(places.tolist())) > 0
        assert 0 <= places.min() <= places.max() < self.number
        copy = FakeCopy(self, pages.copy(), places.copy(), out)
        self.queue.append(copy)
        return copy


class FakeCopy(Copying):
    def __init__(self, host, pages, places, out):
        self.host, self.pages, self.places, self.out = host, pages, places, out

    def make(self):
        """Only the oldest is made next."""
        assert self.host.queue.pop(0) is self
        runner, size = self.host.kv.runner, self.host.kv.page_size
        for of_pages, of_places in ((runner.kv_tokens, self.host.tokens), (runner.kv_positions, self.host.positions)):
            table = of_pages.reshape(-1, size)
            if self.out:
                of_places[self.places] = table[self.pages]
            else:
                table[self.pages] = of_places[self.places]

    def done(self):
        kv = self.host.kv
        while self in self.host.queue and kv.draw.random() * (1 + kv.patience) < 1:
            self.host.queue[0].make()
        return self not in self.host.queue

    def wait(self):
        while self in self.host.queue:
            self.host.queue[0].make()
