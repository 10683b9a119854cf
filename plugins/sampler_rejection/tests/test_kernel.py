"""The Triton kernel, interpreted on the CPU: it draws what plain torch draws. And compiled, without a device."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from core.testing.inputs import sampling_rows
from sampler_rejection.sample import RejectionSampler

HERE = Path(__file__).parent
COLUMNS = ("temperature", "top_k", "top_p", "min_p", "seeds", "positions")


def child(script, *arguments, **env):
    path = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    env = os.environ | {"PYTHONPATH": path} | env
    ended = subprocess.run(command, check=False, env=env, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def interpreted(folder, logits, rows):
    np.savez(folder / "cases.npz", logits=logits, **{name: getattr(rows, name) for name in COLUMNS})
    child("interpreted.py", folder / "cases.npz", folder / "tokens.npy", TRITON_INTERPRET="1")
    return np.load(folder / "tokens.npy")


def spread(count):
    """Rows with every limit alone and with the others, as far as there are rows."""
    return sampling_rows(
        count,
        temperature=[(0.8, 1.0, 2.0)[row % 3] for row in range(count)],
        top_k=[(0, 10, 0, 100, 500)[row // 2 % 5] for row in range(count)],
        top_p=[(1.0, 0.9, 0.5, 0.1)[row // 3 % 4] for row in range(count)],
        min_p=[(0.0, 0.0, 0.02)[row // 5 % 3] for row in range(count)],
        seeds=[row * (2**58 + 1) % 2**64 for row in range(count)],
        positions=[row * row for row in range(count)],
    )


@pytest.mark.parametrize(("vocab", "count"), [(111, 40), (32_000, 12), (103_424, 4)])
def test_the_kernel_draws_what_plain_torch_draws(tmp_path, vocab, count):
    """Random logits have no equals, so both go through the same rounds."""
    random = np.random.default_rng(vocab)
    logits = (random.standard_normal((count, vocab)) * np.linspace(0.5, 4, count)[:, None]).astype(np.float32)
    rows = spread(count)
    expected = RejectionSampler().sample(torch.from_numpy(logits), rows)
    assert interpreted(tmp_path, logits, rows).tolist() == expected.tolist()


def test_equals_at_the_edge_are_kept_by_their_ids(tmp_path, reference):
    """Coarse logits: the kernel may go through other rounds than plain torch, but keeps the same."""
    random = np.random.default_rng(8)
    logits = np.stack([reference.tied(random, 111)] * 20 + [reference.flat(random, 111)] * 20)
    rows = spread(40)
    drawn = interpreted(tmp_path, logits, rows)
    for row, token in enumerate(drawn):
        limits = {name: getattr(rows, name)[row].item() for name in ("temperature", "top_k", "top_p", "min_p")}
        assert reference.probabilities(logits[row], **limits)[token] > 0, limits


def test_rows_that_are_not_drawn(tmp_path):
    logits = np.random.default_rng(1).standard_normal((8, 111)).astype(np.float32)
    logits[1, 50] = np.nan
    logits[2, :] = np.nan
    logits[3, :] = -np.inf
    logits[4, :] = -np.inf
    logits[4, 77] = -50.0
    logits[5, [40, 90]] = 100.0
    logits[6, 8] = np.inf
    rows = sampling_rows(8, temperature=[1, 1, 1, 1, 1, 0, 1, 1], top_p=[1, 1, 1, 1, 0.5, 1, 1, 0])
    drawn = interpreted(tmp_path, logits, rows)
    assert drawn[1:].tolist() == [50, 0, 0, 77, 40, 8, logits[7].argmax()]


def test_it_compiles_for_a_device_that_is_not_there(tmp_path):
    assert child("compiled.py", TRITON_CACHE_DIR=str(tmp_path)).split() == ["True"] * 5


@pytest.mark.gpu
def test_on_a_device_the_kernel_draws_what_plain_torch_draws():
    count, vocab = 64, 103_424
    random = np.random.default_rng(2)
    logits = torch.from_numpy((random.standard_normal((count, vocab)) * np.linspace(0.5, 4, count)[:, None]).astype(np.float32))
    rows = spread(count)
    expected = RejectionSampler().sample(logits, rows)
    drawn = RejectionSampler().sample(logits.cuda(), rows).cpu()
    assert int((drawn != expected).sum()) <= 1  # another exp() may move the edge between two tokens past a uniform number
