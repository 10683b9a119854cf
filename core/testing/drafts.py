"""The contract of draft proposers: guesses are tokens, few enough, and each request's are its own affair."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from core.interfaces.drafts import DraftProposer
from core.testing.contract import Contract

VOCABULARY = 50


class DraftProposerContract(Contract, kit=True):
    """Give ``make``. Requests here repeat themselves, so that most proposers find something to guess."""

    def make(self) -> DraftProposer:
        """A new proposer, as your offer's ``create`` makes it."""
        raise NotImplementedError(f"{type(self).__name__} must define make()")

    # --- what is promised -------------------------------------------------------------------------------------------

    def test_limits_are_positive(self) -> None:
        proposer = self.make()
        assert proposer.most >= 1
        assert proposer.most_rows >= 1

    def test_guesses_are_tokens_and_no_more_than_asked_for(self) -> None:
        proposer, any_at_all = self.make(), 0
        for tokens in texts():
            for most in range(1, proposer.most + 1):
                drafts = proposer.propose("r", tokens, most)
                assert isinstance(drafts, np.ndarray)
                assert drafts.dtype == np.int32
                assert drafts.ndim == 1
                assert len(drafts) <= most, f"{len(drafts)} tokens guessed, {most} were asked for"
                assert ((drafts >= 0) & (drafts < VOCABULARY)).all(), "a guess is no token of the vocabulary"
                any_at_all += len(drafts)
        assert any_at_all, "nothing was ever guessed"

    def test_the_tokens_are_left_alone(self) -> None:
        proposer = self.make()
        for tokens in texts():
            before = tokens.copy()
            proposer.propose("r", tokens, proposer.most)
            assert (tokens == before).all(), "propose() wrote into the request's tokens"

    def test_requests_do_not_move_each_other(self) -> None:
        alone, amid = self.make(), self.make()
        for number, tokens in enumerate(texts()):
            expected = alone.propose("mine", tokens, alone.most)
            other = amid.propose("theirs", tokens[::-1].copy(), amid.most)
            if len(other):
                amid.observe("theirs", len(other), 0)
            found = amid.propose("mine", tokens, amid.most)
            assert expected.tolist() == found.tolist(), "another request's guesses changed this one's"
            if len(expected):
                alone.observe("mine", len(expected), number % (len(expected) + 1))
                amid.observe("mine", len(expected), number % (len(expected) + 1))

    def test_who_is_forgotten_begins_anew(self) -> None:
        proposer, fresh = self.make(), self.make()
        proposer.forget("nobody")
        for tokens in texts():
            drafts = proposer.propose("r", tokens, proposer.most)
            if len(drafts):
                proposer.observe("r", len(drafts), 0)
        proposer.forget("r")
        tokens = texts()[0]
        assert proposer.propose("r", tokens, proposer.most).tolist() == fresh.propose("r", tokens, fresh.most).tolist()


def texts() -> list[NDArray[np.int32]]:
    """Token ids that repeat themselves now and then; the first is so short that hardly anything can be said about it."""
    random = np.random.default_rng(5)
    made = []
    for size in (1, 2, 7, 40, 300, 3000):
        phrase = random.integers(0, VOCABULARY, max(1, size // 3))
        noise = random.integers(0, VOCABULARY, size)
        made += [np.resize(phrase, size).astype(np.int32), noise.astype(np.int32), np.resize([3, 4], size).astype(np.int32)]
    return made
