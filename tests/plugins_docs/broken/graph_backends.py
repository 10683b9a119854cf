"""A backend that records nothing, and what the contract has to say about unsound ones."""

import numpy as np
from compute_backends import Numpy

from core.interfaces.graph import GraphBackend
from core.testing import GraphBackendContract


class Eager(GraphBackend):
    def prepare(self, forward, static_steps, draws=False):
        return forward


class Contract(GraphBackendContract):
    __test__ = False
    implementation = Eager

    def make(self):
        return self.implementation()

    def backend(self):
        return Numpy("float32")


class TestSound(Contract):
    __test__ = True


class TestReplaysTheFirstInputs(Contract):
    """Records by the number of tokens, and forgets to copy new inputs into the recording's."""

    __test__ = True
    caught_by = "test_prepared_steps_give_the_same_values"

    class implementation(Eager):
        def prepare(self, forward, static_steps, draws=False):
            recorded = {}
            return lambda step: forward(recorded.setdefault(step.batch.num_tokens, step))


class TestPadsTheResult(Contract):
    __test__ = True
    caught_by = "test_prepared_steps_give_the_same_values"

    class implementation(Eager):
        def prepare(self, forward, static_steps, draws=False):
            def padded(step):
                outcome = forward(step)
                return outcome._replace(logits=np.concatenate([outcome.logits, outcome.logits[-1:]]))

            return padded


class TestBreaksForGood(Contract):
    __test__ = True
    caught_by = "test_steps_after_a_failed_one_are_right"

    class implementation(Eager):
        def prepare(self, forward, static_steps, draws=False):
            scale = [1.0]

            def step(inputs):
                scale[0] += 1
                outcome = forward(inputs)
                outcome = outcome._replace(logits=outcome.logits * np.float32(scale[0] - 1))
                scale[0] -= 1
                return outcome

            return step


class TestRepeatsTheSameStep(Contract):
    __test__ = True
    caught_by = "test_a_step_that_is_repeated_is_the_one_that_follows"

    class implementation(Eager):
        last = None

        def prepare(self, forward, static_steps, draws=False):
            def step(inputs):
                self.last = forward, inputs
                return forward(inputs)

            return step

        def repeat(self):
            return self.last and self.last[0](self.last[1])


class TestDescribesNothing(Contract):
    __test__ = True
    caught_by = "test_it_describes_itself_in_one_line"

    class implementation(Eager):
        def describe(self):
            return ""
