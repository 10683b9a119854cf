"""Ranks with a CUDA device each, as many as there are up to two: over NCCL, which with one device talks to nobody."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from frontends.offline import LLM, SamplingParams
from tensor_parallel.group import Group

pytestmark = pytest.mark.gpu
PROMPTS = [[5, 6, 7], list(range(10, 90)), [9] * 20]


def test_ranks_add_up_and_gather(tmp_path):
    ranks = min(2, torch.cuda.device_count())

    def work(rank):
        torch.cuda.set_device(rank)
        group = Group(rank, ranks, "cuda")
        group.meet(tmp_path)
        own = torch.full((3, 4), float(rank + 1), device=f"cuda:{rank}", dtype=torch.bfloat16)
        whole = group.gather(own)
        total = group.sum(own.clone())
        group.close()
        return total.float().cpu(), None if whole is None else whole.float().cpu()

    with ThreadPoolExecutor(ranks) as pool:
        (total, whole), *others = pool.map(work, range(ranks), timeout=120)
    assert torch.equal(total, torch.full((3, 4), sum(range(1, ranks + 1)) * 1.0))
    assert torch.equal(whole, torch.arange(1.0, ranks + 1).repeat_interleave(4).expand(3, -1))
    assert all(gathered is None and torch.equal(other, total) for other, gathered in others)


def test_a_model_on_all_devices_gives_the_tokens_of_one():
    greedy = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    settings = {"model": "random:llama-tiny", "device": "cuda", "dtype": "float32", "max_model_len": 256, "max_num_seqs": 4}

    def tokens(ranks):
        with LLM(**settings, num_gpu_blocks_override=64, tensor_parallel_size=ranks) as llm:
            return [result.outputs[0].token_ids for result in llm.generate(PROMPTS, greedy)]

    assert tokens(min(2, torch.cuda.device_count())) == tokens(1)
