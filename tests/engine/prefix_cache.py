"""A small sharing cache policy, so that the engine meets shared, kept and reclaimed pages."""

from __future__ import annotations

import numpy as np

from core.interfaces.cache import CachePolicy, Hit


class PrefixPages(CachePolicy):
    """Keeps every full page under (salt, all tokens up to its end) and gives up the longest unused first."""

    def attach(self, pool) -> None:
        self.pool = pool
        self.kept: dict[tuple, int] = {}

    def lookup(self, tokens, salt) -> Hit:
        size, pages = self.pool.page_size, []
        while (len(pages) + 1) * size < len(tokens):
            page = self.kept.get((salt, tokens[: (len(pages) + 1) * size].tobytes()))
            if page is None:
                break
            pages.append(page)
        found = np.array(pages, np.int32)
        self.pool.retain(found)
        return Hit(found, len(pages) * size)

    def filled(self, tokens, pages, first, salt) -> None:
        size = self.pool.page_size
        assert len(tokens) == len(pages) * size
        for index in range(first, len(pages)):
            key = (salt, tokens[: (index + 1) * size].tobytes())
            if key not in self.kept:
                self.kept[key] = int(pages[index])
                self.pool.retain(pages[index : index + 1])

    def leave(self, pages) -> None:
        self.pool.release(pages)

    def reclaim(self, wanted: int) -> int:
        idle = [(key, page) for key, page in self.kept.items() if self.pool.counts[page] == 1]
        given = sorted(idle, key=lambda one: -len(one[0][1]))[:wanted]
        for key, page in given:
            del self.kept[key]
            self.pool.release(np.array([page], np.int32))
        return len(given)

    @property
    def num_reclaimable(self) -> int:
        return sum(1 for page in self.kept.values() if self.pool.counts[page] == 1)
