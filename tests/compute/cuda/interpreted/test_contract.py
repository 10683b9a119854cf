"""The contract, through Triton's interpreter."""

import pytest

from core.compute.torch_backend.triton.backend import TritonBackend
from core.testing.compute import ComputeBackendContract


@pytest.mark.usefixtures("few_programs", "padding_may_be_anything")
class TestContract(ComputeBackendContract):
    def make(self, dtype):
        return TritonBackend("cpu", dtype, threads=1)
