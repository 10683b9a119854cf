"""A backend that records nothing, and what the contract has to say about unsound ones."""

import numpy as np
from compute_backends import Numpy

from core.interfaces.graph import GraphBackend
from core.testing import GraphBackendContract


class Eager(GraphBackend):
    def prepare(self, forward, static_steps):
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
        def prepare(self, forward, static_steps):
            recorded = {}
            return lambda step: forward(recorded.setdefault(step.batch.num_tokens, step))


class TestPadsTheResult(Contract):
    __test__ = True
    caught_by = "test_prepared_steps_give_the_same_values"

    class implementation(Eager):
        def prepare(self, forward, static_steps):
            def padded(step):
                logits = forward(step)
                return np.concatenate([logits, logits[-1:]])

            return padded


class TestBreaksForGood(Contract):
    __test__ = True
    caught_by = "test_steps_after_a_failed_one_are_right"

    class implementation(Eager):
        def prepare(self, forward, static_steps):
            scale = [1.0]

            def step(inputs):
                scale[0] += 1
                logits = forward(inputs) * np.float32(scale[0] - 1)
                scale[0] -= 1
                return logits

            return step


class TestDescribesNothing(Contract):
    __test__ = True
    caught_by = "test_it_describes_itself_in_one_line"

    class implementation(Eager):
        def describe(self):
            return ""
