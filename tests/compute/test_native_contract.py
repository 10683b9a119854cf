from core.compute.torch_backend.native.backend import NativeBackend
from core.testing.compute import ComputeBackendContract


class TestNative(ComputeBackendContract):
    dtypes = ("float32", "bfloat16")

    def make(self, dtype):
        return NativeBackend(dtype, threads=2)
