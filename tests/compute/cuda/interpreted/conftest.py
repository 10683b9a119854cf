import pytest

from core.compute.torch_backend.triton import backend
from core.compute.torch_backend.triton.tiling import Tiling


@pytest.fixture
def few_programs(monkeypatch):
    """For whole models: the interpreter takes its time for each program, not for what is in it. test_few_rows has every way."""
    monkeypatch.setattr(backend, "tiling", lambda role, tokens, *_: Tiling(16, 64, 64, dot=True) if tokens <= 16 else None)
