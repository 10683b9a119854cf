"""Which class of the torch backend computes: the one with native kernels, or the plain one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from core.compute.torch_backend.backend import TorchBackend, not_deterministic, not_in_eight_bits
from core.compute.torch_backend.native.build import NotBuiltError
from core.compute.torch_backend.triton.tables import Device, in_force
from core.compute.torch_backend.triton.tiling import Table
from core.errors import UserError
from core.interfaces.compute import DTYPE_BYTES, DType

log = logging.getLogger("dovetail.compute")

OLDEST = (8, 0)  # compute capability: of bfloat16
OVERLAPS = (9, 0)  # can place a kernel's programs while the kernel before ends


def on_cpu(
    kernels: str, dtype: DType, threads: int, deterministic: bool = False, kv_in_eight_bits: bool = False
) -> TorchBackend:
    """:raises UserError: when native kernels cannot be had, and ``kernels`` is "native", or another of these wants them."""
    native = partial(native_on_cpu, dtype, threads, deterministic, kv_in_eight_bits)
    return _chosen(kernels, native, lambda: TorchBackend("cpu", dtype, threads), deterministic, kv_in_eight_bits)


def on_cuda(kernels: str, device: str, dtype: DType, deterministic: bool = False, tiling: Path | None = None) -> TorchBackend:
    """``tiling``: a file that says how kernels are divided. :raises UserError: as ``on_cpu``, and when it is no such file."""
    native = partial(triton_on_cuda, device, dtype, deterministic, tiling)
    return _chosen(kernels, native, lambda: TorchBackend(device, dtype), deterministic)


def _chosen(
    kernels: str,
    native: Callable[[], TorchBackend],
    plain: Callable[[], TorchBackend],
    deterministic: bool,
    kv_in_eight_bits: bool = False,
) -> TorchBackend:
    if kernels == "reference":
        log.info("a step's operations are computed by plain torch, as asked for")
        return plain()
    try:
        return native()
    except NotBuiltError as error:
        if kv_in_eight_bits:
            raise not_in_eight_bits(f"the native kernels cannot be had: {error}") from error
        if deterministic:
            raise not_deterministic(f"what is deterministic are the native kernels, and they cannot be had: {error}") from error
        if kernels == "native":
            raise UserError.of(
                f"the native kernels cannot be had: {error}", "backend_torch.kernels", "--torch-kernels auto, for plain torch"
            ) from error
        log.warning("a step's operations are computed by plain torch, which is slower: %s", error)
        return plain()


def native_on_cpu(dtype: DType, threads: int, deterministic: bool = False, kv_in_eight_bits: bool = False) -> TorchBackend:
    """:raises NotBuiltError: when they are not to be had for this number format or on this machine, or compute wrongly."""
    from core.compute.torch_backend.native import library
    from core.compute.torch_backend.native.backend import DTYPES, NativeBackend
    from core.compute.torch_backend.native.check import ALLOWED, ALLOWED_IN_EIGHT_BITS, check

    if dtype not in DTYPES:
        raise NotBuiltError(f"they compute in {' and '.join(DTYPES)}, not in {dtype}")
    backend = NativeBackend(dtype, threads, deterministic=deterministic, kv_in_eight_bits=kv_in_eight_bits)
    check(backend, ALLOWED_IN_EIGHT_BITS if kv_in_eight_bits else ALLOWED[DTYPE_BYTES[dtype]])
    log.info("a step's operations are computed by native kernels: %s", library.instructions())
    return backend


def triton_on_cuda(device: str, dtype: DType, deterministic: bool = False, tiling: Path | None = None) -> TorchBackend:
    """:raises NotBuiltError: when Triton cannot be imported, or makes no kernels for this device."""
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        raise NotBuiltError(f"they are for compute capability 8.0 and newer, and {device} has {'.'.join(map(str, capability))}")
    try:
        from core.compute.torch_backend.triton.backend import TritonBackend, this_device
    except ImportError as error:
        raise NotBuiltError(f"Triton cannot be imported: {error}") from error
    divided = None if deterministic else table_for(this_device(torch.device(device)), tiling)
    backend = TritonBackend(device, dtype, overlap=capability >= OVERLAPS, deterministic=deterministic, table=divided)
    log.info("a step's operations are computed by native kernels: Triton on %s", torch.cuda.get_device_name(device))
    return backend


def table_for(device: Device, named: Path | None, cache: Path | None = None) -> Table:
    """The table of divisions in force on a device; the log says which, and why another is not.

    :raises UserError: when the file that would be taken is no table.
    """
    table, passed_over = in_force(device, named, cache)
    for said in passed_over:
        log.warning(said)
    log.info("native kernels are divided by %s", table.origin)
    return table
