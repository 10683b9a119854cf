"""The stand-in for a device that records steps: it has to refuse what a device refuses, and replay what a device replays."""

import pytest
import torch

from core.testing import ComputeBackendContract
from core.testing.recording import FixedShapes, RecordingFake


class TestFixedShapes(ComputeBackendContract):
    """Its static steps among the rest."""

    dtypes = ("float32",)

    def make(self, dtype):
        return FixedShapes("cpu", dtype, 1)


def recorded(launch):
    fake = RecordingFake()
    return fake.record(launch, fake.pool())


def test_a_replay_runs_the_operations_on_what_is_in_their_tensors_by_then():
    given, calls = torch.ones(3), []

    def launch():
        calls.append(1)
        doubled = given * 2
        doubled.add_(1)
        return doubled.view(3, 1)[:, 0]

    replay, out = recorded(launch)
    assert torch.isnan(out).all(), "recording computes nothing"
    for value in (1.0, 5.0):
        given.fill_(value)
        replay()
        assert out.tolist() == [2 * value + 1] * 3
    assert len(calls) == 1


def test_what_python_saw_while_recording_is_not_seen_again():
    values = [1.0]
    replay, out = recorded(lambda: torch.zeros(1) + values[0])
    values[0] = 2.0
    replay()
    assert out.tolist() == [1.0]


@pytest.mark.parametrize("waits", [lambda x: x.sum().item(), torch.nonzero, lambda x: x[x > 0]])
def test_what_waits_for_the_device_is_refused(waits):
    with pytest.raises(RuntimeError, match="waits for the device: a step that does cannot be recorded"):
        recorded(lambda: waits(torch.ones(2)))
