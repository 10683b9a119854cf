"""The contract of cache policies: no page is ever lost, and none is ever handed out with the wrong contents."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from core.interfaces.cache import CachePolicy, Found, Hit, PagePool
from core.testing.contract import Contract

Tokens = NDArray[np.int32]


class CachePolicyContract(Contract, kit=True):
    """Give ``make``. ``shares``: whether the policy ever finds a page for a second request; False for one that keeps nothing.

    The main test is a random walk: requests with shared beginnings come, grow, are preempted and leave, in pools from
    generous to far too small, and after every step the pool is counted and every page found is compared with what was written.
    """

    shares: bool = True
    walk_steps: int = 400

    def make(self) -> CachePolicy:
        """A new policy, as your offer's ``create`` makes it; not attached yet."""
        raise NotImplementedError(f"{type(self).__name__} must define make()")

    def attached(self, total: int, page_size: int) -> House:
        pool = PagePool(total, page_size)
        policy = self.make()
        policy.attach(pool)
        return House(pool, policy)

    # --- what is promised -------------------------------------------------------------------------------------------

    def test_a_new_policy_keeps_nothing(self) -> None:
        house = self.attached(8, 4)
        assert house.policy.num_reclaimable == 0
        assert house.policy.reclaim(5) == 0
        assert house.policy.find(np.arange(20, dtype=np.int32), "").num_tokens == 0
        house.check()

    @pytest.mark.parametrize(("total", "page_size"), [(64, 4), (24, 4), (12, 1), (9, 16), (200, 2)])
    @pytest.mark.parametrize("seed", range(3))
    def test_no_page_is_lost_on_a_random_walk(self, total: int, page_size: int, seed: int) -> None:
        house = self.attached(total, page_size)
        random = np.random.default_rng([seed, total, page_size])
        for _ in range(self.walk_steps):
            action = random.random()
            if action < 0.40:
                house.admit(conversation(random, total * page_size), salt=str(random.choice(["", "", "a", "b"])))
            elif action < 0.75 and house.live:
                house.grow(house.live[int(random.integers(len(house.live)))], int(random.integers(1, 3 * page_size)), random)
            elif action < 0.95 and house.live:
                house.leave(house.live[int(random.integers(len(house.live)))])
            else:
                house.reclaim(int(random.integers(1, total + 1)))
            house.check()
        for request in list(house.live):
            house.leave(request)
        house.check()
        assert house.pool.num_free + house.policy.num_reclaimable == total, "pages are missing when everyone has left"
        house.policy.reset()
        house.check()
        assert house.policy.num_reclaimable == 0, "reset() keeps pages"
        assert house.pool.num_free == total, "pages are missing after reset()"

    def test_everything_kept_can_be_had_back(self) -> None:
        house = self.attached(10, 4)
        for start in range(0, 3000, 1000):
            request = house.admit(np.arange(start, start + 12, dtype=np.int32), "")
            assert request is not None, "a pool whose pages are free or reclaimable has room"
            house.leave(request)
        house.reclaim(10)
        house.check()
        assert house.pool.num_free == 10

    def test_an_all_new_prompt_can_fill_the_whole_pool(self) -> None:
        house = self.attached(6, 4)
        for start in range(0, 10_000, 1000):
            request = house.admit(np.arange(start, start + 24, dtype=np.int32), "")
            assert request is not None, "old contents stand in the way of a new prompt"
            house.check()
            house.leave(request)
            house.check()

    def test_a_page_in_use_is_never_reclaimed(self) -> None:
        house = self.attached(8, 4)
        request = house.admit(np.arange(16, dtype=np.int32), "")
        assert request is not None
        assert house.policy.reclaim(8) == 0, "pages of a running request are not to be given up"
        house.check()

    def test_the_last_token_is_always_left_to_compute(self) -> None:
        house = self.attached(16, 4)
        tokens = np.arange(12, dtype=np.int32)
        first = house.admit(tokens, "")
        assert first is not None
        house.leave(first)
        for length in range(1, 13):
            hit = house.lookup(tokens[:length], "")
            assert hit <= length - 1

    def test_contents_are_found_again(self) -> None:
        """Unless ``shares`` is False: then nothing may be found."""
        for still_running in (True, False):
            house = self.attached(16, 4)
            tokens = np.arange(14, dtype=np.int32)
            first = house.admit(tokens, "")
            assert first is not None
            if not still_running:
                house.leave(first)
            found = house.lookup(np.concatenate([tokens, tokens]), "")
            if self.shares:
                assert found > 0, "a prompt that was computed before is not found"
            else:
                assert found == 0, "the policy says that it does not share"

    def test_salts_separate(self) -> None:
        house = self.attached(16, 4)
        tokens = np.arange(14, dtype=np.int32)
        assert house.admit(tokens, "tenant one") is not None
        assert house.lookup(tokens, "tenant two") == 0, "a page was found under another salt"
        assert house.lookup(tokens, "") == 0, "a page was found under another salt"

    def test_an_equal_page_after_another_beginning_is_not_found(self) -> None:
        """K and V depend on everything before: a page is known by all tokens up to its end, not by its own."""
        house = self.attached(16, 4)
        assert house.admit(np.array([1, 2, 3, 4, 5, 6, 7, 8, 9], dtype=np.int32), "") is not None
        assert house.lookup(np.array([9, 9, 9, 9, 5, 6, 7, 8, 9], dtype=np.int32), "") == 0
        assert house.lookup(np.array([5, 6, 7, 8, 9], dtype=np.int32), "") == 0

    def test_looking_changes_nothing(self) -> None:
        """A request may wait for a thousand steps, and is asked about in each: it keeps no page young and holds none.

        Two policies live through the same, except that one is asked now and then: they must give up the same pages.
        """
        prompts = [np.arange(start, start + 14, dtype=np.int32) for start in (0, 1000, 2000)]
        left = []
        for asked in (False, True):
            house = self.attached(16, 4)
            for prompt in prompts:
                guest = house.admit(prompt, "")
                assert guest is not None
                house.leave(guest)
                for known in reversed(prompts) if asked else ():
                    house.find(known, "")
            house.reclaim(4)
            left.append([house.find(prompt, "").num_tokens for prompt in prompts])
        assert left[0] == left[1], "who only asked for pages has changed which of them are given up"

    def test_what_was_found_before_does_not_change_what_is_found(self) -> None:
        """``earlier`` saves work: the answer with it is the answer without, whatever came and went in between."""
        house, random = self.attached(24, 4), np.random.default_rng(7)
        waiting = [conversation(random, 60) for _ in range(12)]
        earlier: list[Found | None] = [None] * len(waiting)
        for _ in range(self.walk_steps // 4):
            guest = house.admit(waiting[int(random.integers(len(waiting)))], "")
            if guest is None or random.random() < 0.5:
                for one in house.live[: int(random.integers(4))]:
                    house.leave(one)
                house.reclaim(int(random.integers(1, 12)))
            for index in random.permutation(len(waiting))[:6].tolist():
                again, anew = house.find(waiting[index], "", earlier[index]), house.find(waiting[index], "")
                assert (again.num_tokens, again.room) == (anew.num_tokens, anew.room), (
                    f"with what was found earlier {again} is found, and without it {anew}"
                )
                earlier[index] = again

    def test_reset_forgets(self) -> None:
        house = self.attached(16, 4)
        tokens = np.arange(14, dtype=np.int32)
        first = house.admit(tokens, "")
        assert first is not None
        house.leave(first)
        house.policy.reset()
        house.check()
        assert house.lookup(tokens, "") == 0


@dataclass(eq=False)
class Guest:
    """A running request: all its tokens whose K and V are in its pages, and how many of the pages were announced as full."""

    tokens: Tokens
    pages: list[int]
    announced: int
    salt: str


@dataclass
class House:
    """What a block manager does with a policy, with books of its own about every page."""

    pool: PagePool
    policy: CachePolicy
    live: list[Guest] = field(default_factory=list)
    written: dict[int, tuple[Any, ...]] = field(default_factory=dict)  # page -> (salt, every token up to the page's end)

    def admit(self, tokens: Tokens, salt: str) -> Guest | None:
        """Find, take, write and announce a prompt's pages; None when there is no room, and then nothing was taken."""
        found = self.find(tokens, salt)
        wanted = -(-len(tokens) // self.pool.page_size) - found.num_tokens // self.pool.page_size
        if wanted + found.room > self.available:
            return None
        pages = self.take_found(found, tokens, salt).pages.tolist()
        if wanted > self.pool.num_free:
            self.reclaim(wanted - self.pool.num_free)
        guest = Guest(tokens, pages + self.take(wanted), announced=len(pages), salt=salt)
        self.live.append(guest)
        self.announce(guest)
        return guest

    def lookup(self, tokens: Tokens, salt: str) -> int:
        """How many tokens are found and taken; the pages are given back at once."""
        found = self.find(tokens, salt)
        self.policy.leave(self.take_found(found, tokens, salt).pages)
        self.check()
        return found.num_tokens

    @property
    def available(self) -> int:
        return self.pool.num_free + self.policy.num_reclaimable

    def find(self, tokens: Tokens, salt: str, earlier: Found | None = None) -> Found:
        counts, available = self.pool.counts.copy(), self.available
        found = self.policy.find(tokens.copy(), salt, earlier)
        assert (self.pool.counts == counts).all(), "find() only looks, and pages changed hands"
        assert self.available == available, "find() only looks, and num_reclaimable has changed"
        size = self.pool.page_size
        assert found.num_tokens % size == 0, f"{found.num_tokens} tokens are not whole pages of {size}"
        assert found.num_tokens < len(tokens), f"{found.num_tokens} of {len(tokens)} tokens: the last is to be computed"
        return found

    def take_found(self, found: Found, tokens: Tokens, salt: str) -> Hit:
        counts, available = self.pool.counts.copy(), self.available
        hit = self.policy.take(found)
        self.check_hit(hit.pages, found.num_tokens, tokens, salt, counts)
        taken = available - self.available
        assert taken == found.room, f"find() says that room for {found.room} pages is taken, and take() took it for {taken}"
        return hit

    def grow(self, guest: Guest, number: int, random: np.random.Generator) -> None:
        """Decode: more tokens, page by page, as far as there is room."""
        for _ in range(number):
            if len(guest.tokens) == len(guest.pages) * self.pool.page_size:
                if self.pool.num_free == 0:
                    self.reclaim(1)
                if self.pool.num_free == 0:
                    break
                guest.pages += self.take(1)
            guest.tokens = np.append(guest.tokens, random.integers(0, 3)).astype(np.int32)
        self.announce(guest)

    def leave(self, guest: Guest) -> None:
        self.live.remove(guest)
        self.policy.leave(np.array(guest.pages, dtype=np.int32))

    def reclaim(self, wanted: int) -> None:
        free, reclaimable = self.pool.num_free, self.policy.num_reclaimable
        gained = self.policy.reclaim(wanted)
        assert gained == self.pool.num_free - free, (
            f"reclaim({wanted}) says {gained} pages became free; {self.pool.num_free - free} did"
        )
        assert gained == min(wanted, reclaimable), f"reclaim({wanted}) gave {gained} pages of {reclaimable} reclaimable ones"

    def take(self, number: int) -> list[int]:
        pages = [int(page) for page in self.pool.take(number)]
        for page in pages:
            self.written.pop(page, None)
        return pages

    def announce(self, guest: Guest) -> None:
        size = self.pool.page_size
        full = len(guest.tokens) // size
        if full <= guest.announced:
            return
        for index in range(guest.announced, full):
            self.written[guest.pages[index]] = (guest.salt, *guest.tokens[: (index + 1) * size].tolist())
        pages = np.array(guest.pages[:full], dtype=np.int32)
        tokens = guest.tokens[: full * size].copy()
        self.policy.filled(tokens, pages, guest.announced, guest.salt)
        tokens[:], pages[:] = -1, -1  # the engine lends views of its own arrays: they change as soon as it goes on
        guest.announced = full

    def check_hit(
        self, pages: NDArray[np.int32], num_tokens: int, tokens: Tokens, salt: str, before: NDArray[np.int32]
    ) -> None:
        size = self.pool.page_size
        assert num_tokens == len(pages) * size, (
            f"{len(pages)} pages of {size} do not hold {num_tokens} tokens: only whole pages are shared"
        )
        assert len(set(pages.tolist())) == len(pages), "a page was found twice"
        for index, page in enumerate(pages.tolist()):
            expected = (salt, *tokens[: (index + 1) * size].tolist())
            assert self.written.get(page) == expected, f"page {page} holds other contents than the tokens it was found for"
            assert self.pool.counts[page] == before[page] + 1, f"page {page} was not retained for the caller"

    def check(self) -> None:
        """Free + used + kept = total, and the policy's own number of reclaimable pages is the true one."""
        owners = np.zeros(self.pool.total, dtype=np.int64)
        for guest in self.live:
            owners[guest.pages] += 1
        counts = self.pool.counts
        assert (counts >= owners).all(), "a page that a request uses was released"
        assert self.pool.num_free == int((counts == 0).sum()), "the pool's free pages do not match its counts"
        kept = int(((owners == 0) & (counts > 0)).sum())
        used = int((owners > 0).sum())
        assert self.policy.num_reclaimable == kept, (
            f"num_reclaimable says {self.policy.num_reclaimable}, {kept} pages are kept unused"
        )
        assert self.pool.num_free + used + kept == self.pool.total


def conversation(random: np.random.Generator, most: int) -> Tokens:
    """A prompt that often begins as others do: one of few beginnings, then tokens of a small alphabet."""
    beginning = np.arange(int(random.integers(3)) * 100, dtype=np.int32)[: int(random.integers(0, 40))] % 7
    rest = random.integers(0, 3, int(random.integers(1, 30)))
    tokens: Tokens = np.concatenate([beginning, rest]).astype(np.int32)[: max(1, most)]
    return tokens
