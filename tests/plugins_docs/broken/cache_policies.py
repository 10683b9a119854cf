"""A sound policy that shares, one that does not, and what the contract has to say about unsound ones."""

import numpy as np

from core.interfaces.cache import CachePolicy, Found, Hit
from core.testing import CachePolicyContract


class Sharing(CachePolicy):
    """Keeps every full page, known by salt and all tokens up to its end; gives up the oldest first."""

    def attach(self, pool):
        self.pool = pool
        self.kept = {}

    def key(self, tokens, end, salt):
        return (salt, tokens[:end].tobytes())

    def find(self, tokens, salt, earlier=None):
        size, found = self.pool.page_size, []
        while (end := (len(found) + 1) * size) <= self.longest(tokens):
            page = self.kept.get(self.key(tokens, end, salt))
            if page is None:
                break
            found.append(page)
        pages = np.array(found, dtype=np.int32)
        return Found(len(found) * size, self.room(pages), memo=pages)

    def room(self, pages):
        return int((self.pool.counts[pages] == 1).sum())

    def take(self, found):
        self.pool.retain(found.memo)
        return Hit(found.memo)

    def longest(self, tokens):
        return len(tokens) - 1

    def filled(self, tokens, pages, first, salt):
        for index in range(first, len(pages)):
            key = self.key(tokens, (index + 1) * self.pool.page_size, salt)
            if key not in self.kept:
                self.kept[key] = int(pages[index])
                self.pool.retain(pages[index : index + 1])

    def leave(self, pages):
        self.pool.release(pages)

    def reclaim(self, wanted):
        given = [key for key in self.kept if self.pool.counts[self.kept[key]] == 1][: max(0, wanted)]
        for key in given:
            self.pool.release(np.array([self.kept.pop(key)], dtype=np.int32))
        return len(given)

    @property
    def num_reclaimable(self):
        return sum(self.pool.counts[page] == 1 for page in self.kept.values())

    def reset(self):
        for page in self.kept.values():
            self.pool.release(np.array([page], dtype=np.int32))
        self.kept = {}


class Contract(CachePolicyContract):
    __test__ = False
    walk_steps = 120
    implementation = Sharing

    def make(self):
        return self.implementation()


class TestSound(Contract):
    __test__ = True


class TestSaysItDoesNotShare(Contract):
    __test__ = True
    shares = False
    caught_by = "test_contents_are_found_again"


class TestFindsNothing(Contract):
    __test__ = True
    caught_by = "test_contents_are_found_again"

    class implementation(Sharing):
        def find(self, tokens, salt, earlier=None):
            return Found(0, memo=np.zeros(0, dtype=np.int32))


class TestFindsEverything(Contract):
    __test__ = True
    caught_by = "test_the_last_token_is_always_left_to_compute"

    class implementation(Sharing):
        def longest(self, tokens):
            return len(tokens)


class TestIgnoresTheSalt(Contract):
    __test__ = True
    caught_by = "test_salts_separate"

    class implementation(Sharing):
        def key(self, tokens, end, salt):
            return tokens[:end].tobytes()


class TestKnowsAPageByItsOwnTokens(Contract):
    __test__ = True
    caught_by = "test_an_equal_page_after_another_beginning_is_not_found"

    class implementation(Sharing):
        def key(self, tokens, end, salt):
            return (salt, tokens[end - self.pool.page_size : end].tobytes())


class TestHashCollides(Contract):
    __test__ = True
    caught_by = "test_no_page_is_lost_on_a_random_walk"

    class implementation(Sharing):
        def key(self, tokens, end, salt):
            return (salt, end, int(tokens[:end].sum()) % 8)


class TestForgetsToRetain(Contract):
    __test__ = True
    caught_by = "test_no_page_is_lost_on_a_random_walk"

    class implementation(Sharing):
        def take(self, found):
            return Hit(found.memo)


class TestForgetsTheRoomOfWhatItFinds(Contract):
    __test__ = True
    caught_by = "test_no_page_is_lost_on_a_random_walk"

    class implementation(Sharing):
        def room(self, pages):
            return 0


class TestKeepsYoungWhatIsLookedAt(Contract):
    __test__ = True
    caught_by = "test_looking_changes_nothing"

    class implementation(Sharing):
        def find(self, tokens, salt, earlier=None):
            found = super().find(tokens, salt, earlier)
            for key in [key for key, page in self.kept.items() if page in found.memo]:
                self.kept[key] = self.kept.pop(key)
            return found


class TestRetainsWhatIsLookedAt(Contract):
    __test__ = True
    caught_by = "test_looking_changes_nothing"

    class implementation(Sharing):
        def find(self, tokens, salt, earlier=None):
            found = super().find(tokens, salt, earlier)
            self.pool.retain(found.memo)
            return found

        def take(self, found):
            return Hit(found.memo)


class TestBelievesWhatItFoundEarlier(Contract):
    __test__ = True
    caught_by = "test_what_was_found_before_does_not_change_what_is_found"

    class implementation(Sharing):
        def find(self, tokens, salt, earlier=None):
            return earlier or super().find(tokens, salt)


class TestLosesAPage(Contract):
    __test__ = True
    caught_by = "test_no_page_is_lost_on_a_random_walk"

    class implementation(Sharing):
        def leave(self, pages):
            self.pool.release(pages[:-1] if len(pages) > 5 else pages)


class TestReclaimsPagesInUse(Contract):
    __test__ = True
    caught_by = "test_a_page_in_use_is_never_reclaimed"

    class implementation(Sharing):
        def reclaim(self, wanted):
            given = list(self.kept)[:wanted]
            for key in given:
                self.pool.release(np.array([self.kept.pop(key)], dtype=np.int32))
            return len(given)


class TestReclaimsNothing(Contract):
    __test__ = True
    caught_by = "test_everything_kept_can_be_had_back"

    class implementation(Sharing):
        def reclaim(self, wanted):
            return 0


class TestReclaimsTooMuch(Contract):
    __test__ = True
    caught_by = "test_no_page_is_lost_on_a_random_walk"

    class implementation(Sharing):
        def reclaim(self, wanted):
            return super().reclaim(2 * wanted)


class TestCountsPagesInUseAsReclaimable(Contract):
    __test__ = True
    caught_by = "test_no_page_is_lost_on_a_random_walk"

    class implementation(Sharing):
        @property
        def num_reclaimable(self):
            return len(self.kept)


class TestReservesPages(Contract):
    __test__ = True
    caught_by = "test_an_all_new_prompt_can_fill_the_whole_pool"

    class implementation(Sharing):
        def reclaim(self, wanted):
            return super().reclaim(min(wanted, max(0, self.num_reclaimable - 2)))


class TestResetKeeps(Contract):
    __test__ = True
    caught_by = "test_reset_forgets"

    class implementation(Sharing):
        def reset(self):
            pass


class TestKeepsFromTheStart(Contract):
    __test__ = True
    caught_by = "test_a_new_policy_keeps_nothing"

    class implementation(Sharing):
        def attach(self, pool):
            super().attach(pool)
            self.kept["reserve"] = int(pool.take(1)[0])


class TestKeepsViews(Contract):
    __test__ = True
    caught_by = "test_contents_are_found_again"

    class implementation(Sharing):
        def attach(self, pool):
            super().attach(pool)
            self.seen = []

        def filled(self, tokens, pages, first, salt):
            self.seen.append((tokens, pages, first, salt))

        def find(self, tokens, salt, earlier=None):
            for entry in self.seen:
                super().filled(*entry)
            self.seen = []
            return super().find(tokens, salt, earlier)
