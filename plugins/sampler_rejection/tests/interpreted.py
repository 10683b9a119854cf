"""Run by the tests in an interpreter of its own, with TRITON_INTERPRET=1: python interpreted.py cases.npz tokens.npy."""

import sys

import numpy as np
import torch
from triton.runtime import interpreter

from core.interfaces.compute import SamplingRows
from sampler_rejection.kernel import on_device
from sampler_rejection.parts import draw

CALLED = set()


def call(self, *arguments, **named):
    """A kernel calls a function. The interpreter would put its own language in place each time; once is enough."""
    if self.fn not in CALLED:
        CALLED.add(self.fn)
        interpreter._patch_lang(self.fn)
    return self.rewrite()(*arguments, **named)


def main(given, drawn):
    interpreter.InterpretedFunction.__call__ = call
    torch.set_num_threads(1)
    with np.load(given) as cases:
        columns = [cases[name] for name in ("temperature", "top_k", "top_p", "min_p", "seeds", "positions")]
        logits = torch.from_numpy(cases["logits"])
    rows = SamplingRows(*columns, logprobs=np.full(len(logits), -1, np.int32))
    # Wide tiles: the interpreter's time is that of numpy calls. More than one all the same.
    width = max(64, min(16384, 1 << (logits.shape[1] // 2).bit_length()))
    np.save(drawn, draw(logits, on_device(rows, logits.device), width).numpy())


main(*sys.argv[1:])
