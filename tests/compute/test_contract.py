"""The torch backend passes the contract that every compute backend has to pass."""

from core.compute.torch_backend.backend import TorchBackend
from core.testing.compute import ComputeBackendContract


class TestTorchOnCpu(ComputeBackendContract):
    def make(self, dtype):
        return TorchBackend("cpu", dtype, threads=1)
