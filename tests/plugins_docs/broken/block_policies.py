"""A sound policy, and what the contract has to say about unsound ones."""

from core.interfaces.blocks import BlockPolicy
from core.testing import BlockPolicyContract


class Spare(BlockPolicy):
    """Keeps a tenth for growth."""

    def for_admission(self, use):
        return use.available - use.total // 10

    def for_growth(self, use):
        return use.available


class Contract(BlockPolicyContract):
    __test__ = False
    implementation = Spare

    def make(self):
        return self.implementation()


class TestSound(Contract):
    __test__ = True


class TestGivesWhatIsNotThere(Contract):
    __test__ = True
    caught_by = "test_nothing_is_given_that_is_not_there"

    class implementation(Spare):
        def for_growth(self, use):
            return use.total // 2


class TestTakesPagesAhead(Contract):
    __test__ = True
    caught_by = "test_pages_ahead_are_a_number_of_pages"

    class implementation(Spare):
        ahead = -1


class TestKeepsAll(Contract):
    __test__ = True
    caught_by = "test_an_idle_pool_admits_somebody"

    class implementation(Spare):
        def for_admission(self, use):
            return use.available - use.total


class TestCountsQuestions(Contract):
    __test__ = True
    caught_by = "test_answers_hang_on_the_pool_alone"

    class implementation(Spare):
        asked = 0

        def for_growth(self, use):
            self.asked += 1
            return min(use.available, self.asked)


class TestHoldsFreedPagesBack(Contract):
    __test__ = True
    caught_by = "test_pages_given_back_can_be_given_again"

    class implementation(Spare):
        def for_admission(self, use):
            return use.available - 7 * (use.available % 2)
