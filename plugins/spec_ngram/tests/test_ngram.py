"""What is found again, how far it is followed, and when a request is left alone."""

from time import process_time

import numpy as np
import pytest

from core.offers import Context
from spec_ngram.ngram import FIRST_PAUSE, NgramProposer, continuation
from spec_ngram.plugin import NgramSettings, register_draft_proposers, sizes


def text(words):
    return np.array([ord(letter) for letter in words], np.int32)


def words(tokens):
    return "".join(chr(token) for token in tokens)


@pytest.mark.parametrize(
    ("said", "guessed"),
    [
        ("the cat sat. the c", "at s"),
        ("abXcd abYcd ab", "Ycd "),  # the last time it was said counts
        ("xab1 yab2 zab3 xab", "1 ya"),  # but a longer match counts more
        ("abcdef", ""),
        ("aXbXcX", ""),  # one token found again is too little
        ("a", ""),
        ("abab", "abab"),  # what is so near that little follows goes on repeating
        ("..xyzxyz", "xyzx"),
        ("aaaa", "aaaa"),
    ],
)
def test_what_followed_the_same_tokens_before(said, guessed):
    assert words(continuation(text(said), 4, 2, 4)) == guessed


def test_one_token_is_enough_where_it_is_allowed_to_be():
    assert words(continuation(text("aXbXcX"), 3, 1, 4)) == "cXcX"


def test_only_so_many_tokens_are_looked_for():
    said = text("xabc1 yabc2 xabc")
    assert words(continuation(said, 5, 2, 1)) == "1"
    assert words(continuation(said, 3, 2, 1)) == "2"


def proposer(**changes):
    return NgramProposer(**{"most": 8, "most_rows": 2, "largest": 4, "smallest": 2, "least_right": 0.25} | changes)


def lengths(proposer, accepted, rounds):
    """Of the drafts of one request, of each of which so many tokens turn out right."""
    said, found = text("hello, world. hello"), []
    for _ in range(rounds):
        number = len(proposer.propose("r", said, 99))
        found.append(number)
        if number:
            proposer.observe("r", number, min(accepted, number))
    return found


def test_drafts_are_as_long_as_they_are_good():
    assert lengths(proposer(), accepted=99, rounds=3) == [8, 8, 8]
    assert lengths(proposer(least_right=0.0), accepted=2, rounds=4) == [8, 3, 3, 3]
    assert lengths(proposer(least_right=0.0), accepted=0, rounds=4) == [8, 1, 1, 1]


def test_a_request_that_is_hard_to_guess_is_left_alone_and_tried_again():
    found = lengths(proposer(), accepted=0, rounds=150)
    drafted = [index for index, number in enumerate(found) if number]
    first_try = 7  # after 0.8 ** 7 the share is below a quarter
    assert drafted[:first_try] == list(range(first_try))
    assert drafted[first_try] == first_try + FIRST_PAUSE
    assert drafted[2 * first_try] == 2 * first_try + FIRST_PAUSE + 2 * FIRST_PAUSE


def test_the_settings_come_to_the_proposer():
    [offer] = register_draft_proposers()
    patient, strict = (offer.create(Context(NgramSettings(max_rows=3, min_acceptance=least), {}, {})) for least in (0.0, 0.9))
    assert (patient.most_rows, patient.most) == (3, 8)
    assert lengths(patient, accepted=1, rounds=3) == [8, 2, 2]
    assert lengths(strict, accepted=1, rounds=3) == [8, 0, 0]


def test_guessing_takes_microseconds():
    said = np.random.default_rng(1).integers(0, 50_000, 32_768).astype(np.int32)
    said[-4:] = said[100:104]
    best = 1.0
    for _ in range(200):
        began = process_time()
        continuation(said[-16_384:], 4, 2, 8)
        best = min(best, process_time() - began)
    assert best < 200e-6


def test_the_table_goes_before_the_settings():
    assert sizes(NgramSettings()) == (8, 4, 2)
    assert sizes(NgramSettings(speculative_config={"method": "ngram", "num_speculative_tokens": 3})) == (3, 4, 2)
    assert sizes(NgramSettings(speculative_config={"method": "ngram", "prompt_lookup_max": 1})) == (8, 1, 1)
    with pytest.raises(ValueError, match=r"min_ngram_size \(5\) is greater than max_ngram_size \(4\)"):
        NgramSettings(speculative_config={"method": "ngram", "min_ngram_size": 5})
