"""The contract, through Triton's interpreter."""

from core.compute.torch_backend.triton.backend import TritonBackend
from core.testing.compute import ComputeBackendContract


class TestContract(ComputeBackendContract):
    def make(self, dtype):
        return TritonBackend("cpu", dtype, threads=1)
