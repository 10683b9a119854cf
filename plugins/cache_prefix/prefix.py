"""Pages known by their contents, shared by whoever asks for them and kept until room is needed.

A full page is known by a digest of its tokens and of the digest of the page before it, so equal digests mean equal tokens from
the very beginning. The digests are 128 bits of BLAKE2b under a key drawn for this process: nobody can prepare two prompts that
collide, and among 2**32 pages the chance that any two do is below 2**-64. So no tokens are kept and compared.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from hashlib import blake2b
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from cache_prefix.host import HostTier
from core.interfaces.cache import CachePolicy, Found, Hit, PagePool, Pages
from core.interfaces.compute import Copying, KVCache

DIGEST_SIZE = 16


class PrefixPages(CachePolicy):
    """Of equal pages one is kept, the first to fill up; the others are its twins and go when their request leaves.

    The longest unused page is given up first, and of those that a request left together the last one: who uses a page
    uses all before it, so a page is nearly always given up after those that are of no use without it. The exception is a
    page whose twin is in use: it may go sooner, and the twin takes its place as its request leaves.

    With ``host_bytes`` there is a second tier. A page that was given up and is taken from there gets room at once, so it is a
    kept page like any other, but one into which a copy is under way: its request is told to wait for that.

    A prompt's digests are computed once, as far as its pages are found and one further: ``Found.memo`` keeps them.
    """

    shares = True

    def __init__(self, keeps_outputs: bool = True, host_bytes: int = 0) -> None:
        self.keeps_outputs = keeps_outputs
        self._host_bytes = host_bytes
        self._host: HostTier | None = None

    def attach_memory(self, kv: KVCache) -> None:
        number = self._host_bytes * kv.num_pages // kv.nbytes
        pages = kv.host_pages(number) if number else None
        self._host = HostTier(pages) if pages else None

    def attach(self, pool: PagePool) -> None:
        self._pool = pool
        self._key = os.urandom(blake2b.MAX_KEY_SIZE)
        self._kept: dict[bytes, int] = {}  # digest -> its page, which has one count of ours
        self._digests: dict[int, bytes] = {}  # page -> digest: kept pages and their twins in use
        self._idle: OrderedDict[int, None] = OrderedDict()  # kept pages that no request uses; the first goes first
        self._leaving: dict[int, Copying] = {}  # pages of which a copy is being made
        self._arriving: dict[int, Copying] = {}  # pages into which one is being made

    def find(self, tokens: NDArray[np.int32], salt: str, earlier: Found | None = None) -> Found:
        size, kept, idle, host = self._pool.page_size, self._kept, self._idle, self._host
        digests: list[bytes] = [self._root(salt)] if earlier is None else earlier.memo
        number, room, arriving = 0, 0, False
        while number < (len(tokens) - 1) // size:
            if number + 1 == len(digests):
                digests.append(self._digest(digests[number], tokens[number * size : (number + 1) * size]))
            digest = digests[number + 1]
            page = kept.get(digest)
            if page is not None:
                room += page in idle
                arriving = arriving or self._comes(page)
            elif host is not None and digest in host:
                room, arriving = room + 1, True
            else:
                break
            number += 1
        return Found(number * size, room, arriving, digests)

    def take(self, found: Found) -> Hit:
        digests = found.memo[1 : 1 + found.num_tokens // self._pool.page_size]
        here = [self._kept[digest] for digest in digests if digest in self._kept]
        for page in here:
            self._idle.pop(page, None)
        self._pool.retain(np.array(here, np.int32))
        if len(here) < len(digests):
            self._fetch([digest for digest in digests if digest not in self._kept])
        pages = [self._kept[digest] for digest in digests]
        return Hit(np.array(pages, np.int32), self._under_way(pages) if self._arriving else ())

    def _fetch(self, missing: list[bytes]) -> None:
        """Start to copy these from the host into pages that are retained for who takes them."""
        assert self._host is not None
        short = len(missing) - self._pool.num_free
        if short > 0:
            self.reclaim(short)
        pages = self._pool.take(len(missing))
        for digest, page in zip(missing, pages.tolist(), strict=True):
            self._kept[digest], self._digests[page] = page, digest
        self._pool.retain(pages)
        self._arriving |= dict.fromkeys(pages.tolist(), self._host.restore(missing, pages.tolist()))

    def _comes(self, page: int) -> bool:
        copying = self._arriving.get(page)
        return copying is not None and not copying.done()

    def _under_way(self, pages: list[int]) -> tuple[Copying, ...]:
        """The copies that must be done before these pages can be read."""
        copies = set[Copying]()
        for page in pages:
            copying = self._arriving.get(page)
            if copying is None:
                continue
            if copying.done():
                del self._arriving[page]
            else:
                copies.add(copying)
        return tuple(copies)

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
        counts, idle = self._pool.counts, list[tuple[int, bytes]]()
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
                idle.append((kept, digest))
        if self._host is not None:
            for pages_copied, copying in self._host.save(idle):
                self._leaving |= dict.fromkeys(pages_copied, copying)

    def reclaim(self, wanted: int) -> int:
        given = list(islice((page for page in self._idle if not self._is_copied(page)), wanted))
        if len(given) < wanted and len(given) < len(self._idle):
            others = self._idle.keys() - set(given)
            waited = [page for page in self._idle if page in others][: wanted - len(given)]
            for page in waited:
                self._wait(page)
            given += waited
        for page in given:
            del self._idle[page]
            del self._kept[self._digests.pop(page)]
        self._pool.release(np.array(given, np.int32))
        return len(given)

    def _is_copied(self, page: int) -> bool:
        for copies in (self._leaving, self._arriving):
            copying = copies.get(page)
            if copying is not None:
                if not copying.done():
                    return True
                del copies[page]
        return False

    def _wait(self, page: int) -> None:
        for copies in (self._leaving, self._arriving):
            copying = copies.pop(page, None)
            if copying is not None:
                copying.wait()

    @property
    def num_reclaimable(self) -> int:
        return len(self._idle)

    def reset(self) -> None:
        for page in [*self._leaving, *self._arriving]:
            self._wait(page)
        if self._host is not None:
            self._host.clear()
        pages = np.array(list(self._kept.values()), np.int32)
        for contents in (self._kept, self._digests, self._idle):
            contents.clear()
        self._pool.release(pages)

    def close(self) -> None:
        if self._host is not None:
            self._host.close()

    def _keep(self, digest: bytes, page: int) -> None:
        self._kept[digest] = page
        self._pool.retain(np.array([page], np.int32))

    def _root(self, salt: str) -> bytes:
        """What a first page is chained to; ``person`` sets it apart from every page, whatever the salt."""
        return blake2b(salt.encode("utf-8", "surrogatepass"), digest_size=DIGEST_SIZE, key=self._key, person=b"salt").digest()

    def _digest(self, before: bytes, tokens: NDArray[np.int32]) -> bytes:
        return blake2b(before + tokens.tobytes(), digest_size=DIGEST_SIZE, key=self._key).digest()
