"""The likeliest token, beside plain torch's."""

import pytest
import torch

from core.compute.torch_backend.triton.likeliest import Likeliest


@pytest.mark.parametrize("vocab", [111, 9000])
def test_it_is_the_first_of_equals_and_a_nan_before_all_else(vocab):
    logits = torch.randn(7, vocab + 1, generator=torch.Generator().manual_seed(0))[:, :vocab]
    logits[1, [5, 70, vocab - 1]] = 9.0
    logits[2] = -torch.inf
    logits[3, [60, 3]] = torch.nan
    logits[3, 90] = torch.inf
    logits[4] = -logits[4].abs()
    logits[4, [30, 40]] = torch.tensor([-0.0, 0.0])
    logits[5] = -torch.inf
    logits[5, 101] = -3e38
    likeliest = Likeliest(torch.device("cpu"))
    for _ in range(2):  # the counters are zero again
        assert likeliest(logits).tolist() == logits.argmax(-1).tolist()
    assert not likeliest.takes(logits.double())
    assert not likeliest.takes(logits[:0])
