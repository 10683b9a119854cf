"""A sound proposer, and what the contract has to say about unsound ones."""

import numpy as np

from core.interfaces.drafts import DraftProposer
from core.testing import DraftProposerContract


class Echo(DraftProposer):
    """Guesses that the last token comes again, one time more often than it was right the last time."""

    most = 4
    most_rows = 2

    def __init__(self):
        self.lengths = {}

    def propose(self, request_id, tokens, most):
        return np.full(min(most, self.lengths.get(request_id, 1)), tokens[-1], np.int32)

    def observe(self, request_id, proposed, accepted):
        self.lengths[request_id] = accepted + 1

    def forget(self, request_id):
        self.lengths.pop(request_id, None)


class Contract(DraftProposerContract):
    __test__ = False
    implementation = Echo

    def make(self):
        return self.implementation()


class TestSound(Contract):
    __test__ = True


class TestGuessesNothing(Contract):
    __test__ = True
    caught_by = "test_limits_are_positive"

    class implementation(Echo):
        most = 0


class TestGuessesMore(Contract):
    __test__ = True
    caught_by = "test_guesses_are_tokens_and_no_more_than_asked_for"

    class implementation(Echo):
        def propose(self, request_id, tokens, most):
            return np.full(most + 1, tokens[-1], np.int32)


class TestGuessesNoTokens(Contract):
    __test__ = True
    caught_by = "test_guesses_are_tokens_and_no_more_than_asked_for"

    class implementation(Echo):
        def propose(self, request_id, tokens, most):
            return tokens[-1:] + np.int32(1000)


class TestWrites(Contract):
    __test__ = True
    caught_by = "test_the_tokens_are_left_alone"

    class implementation(Echo):
        def propose(self, request_id, tokens, most):
            tokens.sort()
            return tokens[-1:]


class TestMixesRequests(Contract):
    __test__ = True
    caught_by = "test_requests_do_not_move_each_other"

    class implementation(Echo):
        def propose(self, request_id, tokens, most):
            return super().propose("all", tokens, most)

        def observe(self, request_id, proposed, accepted):
            super().observe("all", proposed, 3 if request_id == "theirs" else accepted)


class TestNeverForgets(Contract):
    __test__ = True
    caught_by = "test_who_is_forgotten_begins_anew"

    class implementation(Echo):
        def observe(self, request_id, proposed, accepted):
            super().observe(request_id, proposed, accepted + 2)

        def forget(self, request_id):
            pass
