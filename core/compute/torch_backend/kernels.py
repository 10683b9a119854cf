"""Which class of the torch backend computes: the one with native kernels, or the plain one."""

from __future__ import annotations

import logging

from core.compute.torch_backend.backend import TorchBackend
from core.compute.torch_backend.native.build import NotBuiltError
from core.errors import UserError
from core.interfaces.compute import DType

log = logging.getLogger("dovetail.compute")


def on_cpu(kernels: str, dtype: DType, threads: int) -> TorchBackend:
    """:raises UserError: when ``kernels`` is "native" and they cannot be had."""
    if kernels == "reference":
        log.info("a step's operations are computed by plain torch, as asked for")
        return TorchBackend("cpu", dtype, threads)
    try:
        return native_on_cpu(dtype, threads)
    except NotBuiltError as error:
        if kernels == "native":
            raise UserError.of(
                f"the native kernels cannot be had: {error}", "backend_torch.kernels", "--torch-kernels auto, for plain torch"
            ) from error
        log.warning("a step's operations are computed by plain torch, which is slower: %s", error)
        return TorchBackend("cpu", dtype, threads)


def native_on_cpu(dtype: DType, threads: int) -> TorchBackend:
    """:raises NotBuiltError: when they are not to be had for this number format or on this machine, or compute wrongly."""
    from core.compute.torch_backend.native import library
    from core.compute.torch_backend.native.backend import DTYPES, NativeBackend
    from core.compute.torch_backend.native.check import check

    if dtype not in DTYPES:
        raise NotBuiltError(f"they compute in {' and '.join(DTYPES)}, not in {dtype}")
    backend = NativeBackend(dtype, threads)
    check(backend)
    log.info("a step's operations are computed by native kernels: %s", library.instructions())
    return backend
