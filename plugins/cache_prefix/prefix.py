"""Pages known by their contents, shared by whoever asks for them and kept until room is needed.

A full page is known by a digest of its tokens and of the digest of the page before it, so equal digests mean equal tokens from
the very beginning. The digests are 128 bits of BLAKE2b under a key drawn for this process: nobody can prepare two prompts that
collide, and among 2**32 pages the chance that any two do is below 2**-64. So no tokens are kept and compared.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from core.interfaces.cache import CachePolicy, Hit, PagePool, Pages

DIGEST_SIZE = 16


class PrefixPages(CachePolicy):
    """Of equal pages one is kept, the first to fill up; the others are its twins and go when their request leaves.

    The longest unused page is given up first, and of those that a request left together the last one: who uses a page
    uses all before it, so a page is nearly always given up after those that are of no use without it. The exception is a
    page whose twin is in use: it may go sooner, and the twin takes its place as its request leaves.
    """

    def __init__(self, keeps_outputs: bool = True) -> None:
        self.keeps_outputs = keeps_outputs

    def attach(self, pool: PagePool) -> None:
        self._pool = pool
        self._key = os.urandom(blake2b.MAX_KEY_SIZE)
        self._kept: dict[bytes, int] = {}  # digest -> its page, which has one count of ours
        self._digests: dict[int, bytes] = {}  # page -> digest: kept pages and their twins in use
        self._idle: OrderedDict[int, None] = OrderedDict()  # kept pages that no request uses; the first goes first

    def lookup(self, tokens: NDArray[np.int32], salt: str) -> Hit:
        size, kept, found = self._pool.page_size, self._kept, list[int]()
        digest = self._root(salt)
        for index in range((len(tokens) - 1) // size):
            digest = self._digest(digest, tokens[index * size : (index + 1) * size])
            page = kept.get(digest)
            if page is None:
                break
            found.append(page)
        for page in found:
            self._idle.pop(page, None)
        pages = np.array(found, np.int32)
        self._pool.retain(pages)
        return Hit(pages, len(found) * size)

    def filled(self, tokens: NDArray[np.int32], pages: Pages, first: int, salt: str) -> None:
        size, own = self._pool.page_size, pages.tolist()
        digest = self._digests.get(own[first - 1]) if first else self._root(salt)
        if digest is None:
            return  # its beginning was forgotten by reset while it ran
        for index in range(first, len(own)):
            digest = self._digest(digest, tokens[index * size : (index + 1) * size])
            self._digests[own[index]] = digest
            if digest not in self._kept:
                self._keep(digest, own[index])

    def leave(self, pages: Pages) -> None:
        own = pages.tolist()
        for page in own:
            digest = self._digests.get(page)
            if digest is not None and digest not in self._kept:
                self._keep(digest, page)  # its twin was given up meanwhile
        self._pool.release(pages)
        counts = self._pool.counts
        for page in reversed(own):
            digest = self._digests.get(page)
            if digest is None:
                continue
            kept = self._kept[digest]
            if kept != page:
                del self._digests[page]
            if counts[kept] == 1:
                self._idle[kept] = None
                self._idle.move_to_end(kept)

    def reclaim(self, wanted: int) -> int:
        given = [self._idle.popitem(last=False)[0] for _ in range(min(wanted, len(self._idle)))]
        for page in given:
            del self._kept[self._digests.pop(page)]
        self._pool.release(np.array(given, np.int32))
        return len(given)

    @property
    def num_reclaimable(self) -> int:
        return len(self._idle)

    def reset(self) -> None:
        pages = np.array(list(self._kept.values()), np.int32)
        for contents in (self._kept, self._digests, self._idle):
            contents.clear()
        self._pool.release(pages)

    def _keep(self, digest: bytes, page: int) -> None:
        self._kept[digest] = page
        self._pool.retain(np.array([page], np.int32))

    def _root(self, salt: str) -> bytes:
        """What a first page is chained to; ``person`` sets it apart from every page, whatever the salt."""
        return blake2b(salt.encode("utf-8", "surrogatepass"), digest_size=DIGEST_SIZE, key=self._key, person=b"salt").digest()

    def _digest(self, before: bytes, tokens: NDArray[np.int32]) -> bytes:
        return blake2b(before + tokens.tobytes(), digest_size=DIGEST_SIZE, key=self._key).digest()
