"""Sound policies, and what the contract has to say about unsound ones."""

from core.interfaces.scheduler import SchedulingPolicy
from core.testing import SchedulerContract


class Whole(SchedulingPolicy):
    def order(self, request):
        return (float(request.priority), request.arrived)

    def grant(self, remaining, budget):
        return remaining if remaining <= budget.left else 0


class Split(Whole):
    def grant(self, remaining, budget):
        return min(remaining, budget.left)


class Contract(SchedulerContract):
    __test__ = False
    splits_prompts = True
    implementation = Split

    def make(self):
        return self.implementation()


class TestSound(Contract):
    __test__ = True


class TestSoundWhole(Contract):
    __test__ = True
    splits_prompts = False
    implementation = Whole


class TestSaysThatItSplits(Contract):
    __test__ = True
    implementation = Whole
    caught_by = "test_a_long_prompt_is_computed_in_the_end"


class TestSplitsUnsaid(Contract):
    __test__ = True
    splits_prompts = False
    caught_by = "test_grants_stay_within_the_budget"


class TestOverdraws(Contract):
    __test__ = True
    caught_by = "test_grants_stay_within_the_budget"

    class implementation(Split):
        def grant(self, remaining, budget):
            return remaining


class TestKeepsTheBooks(Contract):
    __test__ = True
    caught_by = "test_grants_stay_within_the_budget"

    class implementation(Split):
        def grant(self, remaining, budget):
            granted = super().grant(remaining, budget)
            budget.left -= granted
            return granted


class TestWastesSmallSteps(Contract):
    __test__ = True
    caught_by = "test_an_empty_step_is_not_wasted"

    class implementation(Split):
        def grant(self, remaining, budget):
            return min(remaining, budget.left) // 64 * 64


class TestStarvesShortTails(Contract):
    __test__ = True
    caught_by = "test_everybody_finishes"

    class implementation(Split):
        def grant(self, remaining, budget):
            return 0 if remaining < 0.4 * budget.total and budget.total > 64 else min(remaining, budget.left)


class TestPriorityUpsideDown(Contract):
    __test__ = True
    caught_by = "test_a_lower_priority_number_runs_earlier"

    class implementation(Split):
        def order(self, request):
            return (-float(request.priority), request.arrived)


class TestOrderIsANumber(Contract):
    __test__ = True
    caught_by = "test_order_is_a_sort_key"

    class implementation(Split):
        def order(self, request):
            return float(request.priority)


class TestOrderCountsCalls(Contract):
    __test__ = True
    caught_by = "test_order_is_a_sort_key"

    class implementation(Split):
        calls = 0

        def order(self, request):
            self.calls += 1
            return (float(request.priority), float(self.calls))
