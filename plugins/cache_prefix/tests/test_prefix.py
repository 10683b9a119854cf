"""What the contract (``tests/plugins_docs``) leaves open: which page goes first, what becomes of twins, and what it costs."""

from __future__ import annotations

from time import process_time

import numpy as np
import pytest

from cache_prefix.prefix import PrefixPages
from core.interfaces.cache import PagePool

SIZE = 4


def tokens(number, start=0):
    return np.arange(start, start + number, dtype=np.int32)


@pytest.fixture
def pool():
    return PagePool(16, SIZE)


@pytest.fixture
def policy(pool):
    policy = PrefixPages()
    policy.attach(pool)
    return policy


def run(policy, pool, prompt, salt=""):
    """A request that computes its whole prompt; its pages."""
    hit = policy.take(policy.find(prompt, salt))
    full = len(prompt) // SIZE
    pages = np.concatenate([hit.pages, pool.take(-(-len(prompt) // SIZE) - len(hit.pages))])
    policy.filled(prompt[: full * SIZE], pages[:full], len(hit.pages), salt)
    return pages


def found(policy, prompt, salt=""):
    return policy.find(prompt, salt).num_tokens


def test_the_longest_unused_goes_first_and_of_one_request_the_last_page(policy, pool):
    old, new = tokens(13), tokens(13, 100)
    for prompt in (old, new):
        policy.leave(run(policy, pool, prompt))
    assert policy.reclaim(1) == 1
    assert (found(policy, new), found(policy, old)) == (12, 8)
    assert policy.reclaim(4) == 4, "two that are left of the old one and two of the new one, though it was looked for first"
    assert (found(policy, new), found(policy, old)) == (4, 0)


def test_what_was_found_again_is_young_again(policy, pool):
    first, second = tokens(5), tokens(5, 100)
    for prompt in (first, second):
        policy.leave(run(policy, pool, prompt))
    policy.leave(run(policy, pool, first))
    assert policy.reclaim(1) == 1
    assert (found(policy, first), found(policy, second)) == (4, 0)


def test_of_two_equal_pages_one_is_kept(policy, pool):
    prompt = tokens(9)
    ones, twins = pool.take(3), pool.take(3)  # both began before either had filled a page
    for pages in (ones, twins):
        policy.filled(prompt[:8], pages[:2], 0, "")
    assert policy.take(policy.find(prompt, "")).pages.tolist() == ones[:2].tolist()
    policy.leave(ones[:2])
    policy.leave(twins)
    policy.leave(ones)
    assert (policy.num_reclaimable, pool.num_free) == (2, 14)


def test_a_twin_takes_the_place_of_a_page_that_was_given_up(policy, pool):
    prompt = tokens(13)
    ones, twins = pool.take(1), pool.take(4)
    policy.filled(prompt[:4], ones, 0, "")
    policy.filled(prompt[:12], twins[:3], 0, "")
    policy.leave(ones)
    assert policy.reclaim(5) == 1, "the first page's twin is in use, not the page"
    assert found(policy, prompt) == 0
    policy.leave(twins)
    assert found(policy, prompt) == 12
    assert policy.reclaim(16) == 3
    assert pool.num_free == 16


def test_the_use_of_a_twin_is_the_use_of_its_page(policy, pool):
    prompt, other = tokens(9), tokens(5, 100)
    ones, twins = pool.take(1), pool.take(3)
    policy.filled(prompt[:4], ones, 0, "")
    policy.filled(prompt[:8], twins[:2], 0, "")
    policy.leave(ones)
    policy.leave(run(policy, pool, other))
    policy.leave(twins)
    policy.reclaim(1)
    assert (found(policy, prompt), found(policy, other)) == (8, 0), "the beginning outlives what was used before it"


def test_reset_while_a_request_runs(policy, pool):
    prompt = tokens(17)
    pages = run(policy, pool, prompt[:9])
    policy.reset()
    pages = np.concatenate([pages, pool.take(2)])
    policy.filled(prompt[:16], pages[:4], 2, "")  # goes on from a beginning that was forgotten
    policy.leave(pages)
    assert found(policy, prompt) == 0
    assert pool.num_free == 16


def test_two_processes_have_other_digests(policy, pool):
    """The key is drawn: whoever finds a collision elsewhere has found nothing here."""
    other = PrefixPages()
    other.attach(pool)
    assert policy._digest(bytes(16), tokens(4)) == policy._digest(bytes(16), tokens(4))
    assert policy._digest(bytes(16), tokens(4)) != other._digest(bytes(16), tokens(4))


def test_a_salt_is_not_mistaken_for_tokens(policy, pool):
    """A salt chosen as the bytes of a page stands for no page."""
    prompt = tokens(9)
    policy.leave(run(policy, pool, prompt))
    assert policy._root("") != policy._root("\ud800") != policy._root("tenant")
    assert found(policy, prompt[4:], salt=prompt[:4].tobytes().decode()) == 0
    assert found(policy, prompt) == 8


@pytest.mark.parametrize("keeps_outputs", [True, False])
def test_the_setting_reaches_the_policy(keeps_outputs):
    from cache_prefix.plugin import PrefixSettings, register_cache_policies
    from core.offers import Context

    [offer] = register_cache_policies()
    assert offer.create(Context(PrefixSettings(cache_outputs=keeps_outputs), {}, {})).keeps_outputs == keeps_outputs


def test_matching_costs_less_than_100_microseconds_per_thousand_tokens():
    pool, policy = PagePool(600, 64), PrefixPages()
    policy.attach(pool)
    prompt = np.random.default_rng(0).integers(0, 103_424, 32_001).astype(np.int32)
    pages = pool.take(500)
    policy.filled(prompt[:32_000], pages, 0, "")
    policy.leave(pages)
    best = np.inf
    for _ in range(20):
        began = process_time()
        hit = policy.take(policy.find(prompt, ""))
        best = min(best, process_time() - began)
        assert len(hit.pages) == 500
        policy.leave(hit.pages)
    assert best / 32 < 100e-6, f"{best / 32 * 1e6:.0f} us per thousand tokens"
