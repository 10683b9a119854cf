"""What this machine has: asked in a child process, so that a sick driver can neither hang nor crash the launch.

``python -m core.compose.probe`` prints one JSON object. Tests (and launches from a prepared image) skip the asking with the
variable DOVETAIL_DEVICE_PROBE, which holds that JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.host import free_and_total_memory, usable_cores

VARIABLE = "DOVETAIL_DEVICE_PROBE"
TIMEOUT = 20.0  # seconds; a driver that wakes up eight cards needs a few


@dataclass(frozen=True)
class Gpu:
    name: str
    capability: float
    memory_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class DeviceProbe:
    """Memory is in bytes. ``note`` says what could not be found out."""

    cpu_name: str
    cores: int
    flags: tuple[str, ...]
    memory_bytes: int
    free_bytes: int
    devices: tuple[Gpu, ...] = ()
    note: str = ""

    @classmethod
    def from_json(cls, text: str) -> DeviceProbe:
        """:raises ValueError: when the text is no probe."""
        try:
            data = json.loads(text)
            devices = tuple(Gpu(**gpu) for gpu in data.pop("devices", ()))
            return cls(**{**data, "flags": tuple(data.get("flags", ())), "devices": devices})
        except (TypeError, AttributeError) as error:
            raise ValueError(str(error)) from error

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def probe_devices(env: Mapping[str, str] | None = None, timeout: float = TIMEOUT) -> DeviceProbe:
    """Ask the child; a child that fails or hangs leaves a machine with a CPU and a note why nothing more is known."""
    env = os.environ if env is None else env
    given = env.get(VARIABLE)
    if given:
        try:
            return DeviceProbe.from_json(given)
        except ValueError as error:
            raise UserError.of(
                f"the device probe is not what `python -m core.compose.probe` prints: {error}", f"${VARIABLE}"
            ) from None
    try:
        child = subprocess.run(
            [sys.executable, "-m", "core.compose.probe"],
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=Path(__file__).parents[2],
            env=dict(env),
        )
    except subprocess.TimeoutExpired:
        return _cpu(note=f"the device probe did not answer in {timeout:g} s: no CUDA device is assumed")
    try:
        return DeviceProbe.from_json(child.stdout)
    except ValueError:
        last = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        return _cpu(note=f"the device probe failed ({last}): no CUDA device is assumed")


def _cpu(devices: tuple[Gpu, ...] = (), note: str = "") -> DeviceProbe:
    free, total = free_and_total_memory()
    name, flags = _cpu_info()
    return DeviceProbe(name, usable_cores(), flags, total, free, devices, note)


def _cpu_info() -> tuple[str, tuple[str, ...]]:
    import platform

    name = ""
    flags: tuple[str, ...] = ()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and not name:
                name = value.strip()
            elif key.strip().lower() in ("flags", "features") and not flags:
                flags = tuple(sorted(value.split()))
    except OSError:
        pass
    return name or platform.processor() or platform.machine(), flags


def _gpus() -> tuple[tuple[Gpu, ...], str]:
    """The CUDA driver knows which devices this process may use; NVML knows, without a context, how much of each is free."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return (), ""
    status = cuda.cuInit(0)
    if status != 0:
        return (), "" if status == 100 else f"the CUDA driver does not start: error {status}"
    count = ctypes.c_int()
    cuda.cuDeviceGetCount(ctypes.byref(count))
    free = _nvml_free()
    return tuple(_gpu(cuda, index, free) for index in range(count.value)), ""


def _gpu(cuda: Any, index: int, free: Mapping[bytes, int]) -> Gpu:
    device, total = ctypes.c_int(), ctypes.c_size_t()
    major, minor = ctypes.c_int(), ctypes.c_int()
    name, uuid = ctypes.create_string_buffer(128), ctypes.create_string_buffer(16)
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(total), device)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # compute capability, major and minor
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    cuda.cuDeviceGetUuid(uuid, device)
    capability = float(f"{major.value}.{minor.value}")
    return Gpu(name.value.decode(errors="replace"), capability, total.value, min(free.get(uuid.raw, total.value), total.value))


class _NvmlMemory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


def _nvml_free() -> dict[bytes, int]:
    """Free bytes by the device's 16-byte UUID; empty where NVML is not to be had."""
    try:
        nvml = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
    except OSError:
        return {}
    if nvml.nvmlInit_v2() != 0:
        return {}
    count = ctypes.c_uint()
    nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
    found = {}
    for index in range(count.value):
        handle, memory, text = ctypes.c_void_p(), _NvmlMemory(), ctypes.create_string_buffer(96)
        if (
            nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) == 0
            and nvml.nvmlDeviceGetUUID(handle, text, len(text)) == 0
            and nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) == 0
        ):
            found[bytes.fromhex(text.value.decode().removeprefix("GPU-").replace("-", ""))] = memory.free
    nvml.nvmlShutdown()
    return found


if __name__ == "__main__":
    print(_cpu(*_gpus()).to_json())  # noqa: T201 - the JSON on stdout is this module's whole purpose
