import numpy as np
import pytest
from triton.runtime import interpreter

from core.compute.torch_backend.triton import backend, static
from core.compute.torch_backend.triton.tiling import Tiling


@pytest.fixture(autouse=True, scope="session")
def called_at_once():
    """Where a kernel calls a function, the interpreter puts its own language in place each time: a third of what it takes.

    Once is enough. The kernel itself is given it at every launch.
    """
    called = set()

    def call(self, *args, **kwargs):
        if self.fn not in called:
            called.add(self.fn)
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpretedFunction, "__call__", call)
        yield


@pytest.fixture
def few_programs(monkeypatch):
    """For whole models: the interpreter takes its time for each program, not for what is in it. test_few_rows has every way."""
    monkeypatch.setattr(
        backend, "tiling", lambda table, role, tokens, *_: Tiling(16, 64, 64, dot=True) if tokens <= 16 else None
    )
    monkeypatch.setattr(static, "PROGRAMS", 2)


@pytest.fixture
def padding_may_be_anything():
    """The interpreter computes with it in numpy, which warns of what overflows."""
    with np.errstate(all="ignore"):
        yield
