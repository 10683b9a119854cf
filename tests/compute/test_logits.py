"""Adjusting logits and reporting log-probabilities, where equal logits meet."""

import numpy as np
import torch

from core.compute.torch_backend import logits
from core.compute.torch_backend.backend import TorchBackend
from core.testing.inputs import adjustment


def test_equal_logits_rank_by_their_ids():
    values = torch.zeros(2, 50_000)
    values[0, [40_000, 7, 9]] = 1.0
    values[1] = -3.0
    values[1, 5] = -0.0
    values[1, 3] = 0.0
    chosen = torch.tensor([9, 49_999])
    logprob, rank, ids, top = logits.logprobs(values, chosen, 5)
    assert ids.tolist() == [[7, 9, 40_000, 0, 1], [3, 5, 0, 1, 2]]
    assert rank.tolist() == [1, 49_999]
    exact = values.double().log_softmax(-1)
    assert torch.allclose(logprob.double(), exact[[0, 1], chosen], atol=1e-6)
    assert torch.allclose(top.double(), exact.gather(1, ids), atol=1e-6)


def test_top_ids_are_a_stable_sort_of_coarse_logits():
    values = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    ids = torch.sort(values, dim=-1, descending=True, stable=True).indices
    assert torch.equal(logits.logprobs(values, ids[:, 0], 20)[2], ids[:, :20])
    ranks = [logits.logprobs(values, ids[:, place], 0)[1].tolist() for place in (0, 3, 4999)]
    assert ranks == [[0] * 3, [3] * 3, [4999] * 3]


def test_banned_logits_have_no_probability():
    values = torch.zeros(1, 8)
    values[0, 2:] = -torch.inf
    logprob, rank, ids, top = logits.logprobs(values, torch.tensor([1]), 3)
    assert np.allclose(logprob, np.log(0.5))
    assert (rank.tolist(), ids.tolist()) == ([1], [[0, 1, 2]])
    assert top[0, 2] == -torch.inf


def test_biases_of_one_token_add_up_and_bans_come_last():
    values = torch.tensor([[1.0, 2.0, -1.0]])
    changes = adjustment(1, bias={(0, 0): -3.0}, banned=[(0, 2)], seen={(0, 0): 2.0, (0, 2): 1.0}, repetition=2.0, presence=0.5)
    changes.bias_rows = np.zeros(2, np.int32)
    changes.bias_tokens = np.zeros(2, np.int32)
    changes.bias_values = np.array([-3.0, 1.0], np.float32)
    assert logits.adjust(values, changes).tolist() == [[-2.5, 2.0, -np.inf]]


def test_a_biased_token_that_is_banned_stays_banned():
    changes = adjustment(1, bias={(0, 1): 100.0}, banned=[(0, 1)])
    assert logits.adjust(torch.zeros(1, 3), changes).tolist() == [[0.0, -np.inf, 0.0]]


def test_logits_of_inference_mode_can_be_adjusted():
    backend = TorchBackend("cpu", "float32", threads=1)
    with torch.inference_mode():
        values = backend.adjust(torch.zeros(2, 4), adjustment(2, bias={(1, 2): 1.0}))
        assert backend.argmax(values).tolist() == [0, 2]
