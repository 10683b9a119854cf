"""What the doctor finds about this machine, one question a function."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frontends.cli import machine
from frontends.cli.findings import Finding, fail, ok, warn

if TYPE_CHECKING:
    from core.compose.probe import DeviceProbe

GIB = 1 << 30
EXTRAS = ("torch", "http")  # what `pip install 'dovetail-serve[all]'` brings
FEW_FILES = 1024  # descriptors: each client takes one
LITTLE_DISK = 2 * GIB
COMPILER_TIMEOUT = 10.0  # seconds


def python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    if machine.python_will_do():
        yield ok("python", f"{version}, {sys.executable}")
    else:
        remedy = f"make an environment with a Python {machine.python_range()}"
        yield fail("python", f"{version} is not {machine.python_range()}", remedy)
    needed = machine.requirements(EXTRAS)
    wrong = [(name, asked, version) for name, asked, version, good in needed if not good]
    for name, asked, found in wrong:
        if found is None:
            yield fail("packages", f"{name} is not installed", f"pip install '{name}{asked}'")
        else:
            yield warn("packages", f"{name} is {found}, and {asked} is asked for", f"pip install '{name}{asked}'")
    if not wrong:
        yield ok("packages", f"all {len(needed)} that serving needs are here, in versions that will do")


def processors() -> Iterator[Finding]:
    from core.host import usable_cores

    cores, logical = usable_cores(), os.cpu_count() or 1
    quota = machine.quota()
    if quota is not None and quota < 1:
        yield warn("processors", f"the container is allowed {quota:g} of a processor", "allow it one at least")
    else:
        allowed = "" if quota is None else f", {quota:g} processors of time allowed"
        yield ok("processors", f"{cores} physical cores to use of {logical} logical ones{allowed}")
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given) != cores:
        yield warn(
            "threads",
            f"OMP_NUM_THREADS is {given}, and {cores} cores are to be used",
            "unset OMP_NUM_THREADS, and say --threads where another number is meant",
        )
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > cores:
        yield warn("load", f"others keep this machine busy: a load of {load:.1f} on {cores} cores", "measure when it is idle")


def limits() -> Iterator[Finding]:
    pages = machine.huge_pages()
    if pages == "never":
        yield warn(
            "huge pages",
            "the system gives none, so that weights cost more address translations",
            "as root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        )
    elif pages is not None:
        yield ok("huge pages", pages)
    try:
        import resource
    except ModuleNotFoundError:  # not a Unix
        return
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files != resource.RLIM_INFINITY and files < FEW_FILES:
        yield warn("open files", f"at most {files}, and each client takes one", f"ulimit -n {FEW_FILES * 8}")
    else:
        yield ok("open files", "no limit" if files == resource.RLIM_INFINITY else f"at most {files}")


def memory(probe: DeviceProbe) -> Iterator[Finding]:
    what = f"{probe.free_bytes / GIB:.1f} of {probe.memory_bytes / GIB:.1f} GiB are free"
    if probe.free_bytes < GIB:
        yield warn("memory", what, "end what else runs here, or allow the container more")
    else:
        yield ok("memory", what)
    useful = [name for name in ("amx_bf16", "avx512_bf16", "avx512_vnni", "avx512f", "avx2", "asimd") if name in probe.flags]
    if useful:
        yield ok("instructions", f"{probe.cpu_name}: {', '.join(useful)}")
    elif probe.flags:
        yield warn(
            "instructions",
            f"{probe.cpu_name} has neither AVX2 nor AVX-512: it computes slowly",
            "use another machine, or a GPU",
        )


def devices(probe: DeviceProbe) -> Iterator[Finding]:
    driver = machine.nvidia_driver()
    for number, gpu in enumerate(probe.devices):
        free = f"{gpu.free_bytes / GIB:.1f} of {gpu.memory_bytes / GIB:.1f} GiB are free"
        with_driver = f", driver {driver}" if driver else ""
        yield ok(f"gpu {number}", f"{gpu.name}, compute capability {gpu.capability:.1f}, {free}{with_driver}")
    if probe.note:
        yield warn("gpu", probe.note, "run nvidia-smi: it says what the driver wants")
    elif not probe.devices and driver:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        remedy = "unset CUDA_VISIBLE_DEVICES" if hidden is not None else "give the container its devices: --gpus all"
        yield warn("gpu", f"the NVIDIA driver {driver} is loaded, and this process may use none of its devices", remedy)
    elif not probe.devices:
        yield ok("gpu", "none: models run on the CPU")


def disk(settings: Mapping[str, Any]) -> Iterator[Finding]:
    for name, folder in machine.caches(settings).items():
        there = folder
        while not there.exists() and there != there.parent:
            there = there.parent
        if not os.access(there, os.W_OK | os.X_OK):
            remedy = "--model-cache FOLDER" if name == "models" else "set XDG_CACHE_HOME to a folder"
            yield fail(f"{name} cache", f"{folder} cannot be written", f"{remedy} that can be written, or chmod {there}")
            continue
        free = shutil.disk_usage(there).free
        used = f"{machine.size_of(folder) / GIB:.2f} GiB in {folder}" if folder.exists() else f"nothing yet in {folder}"
        what = f"{used}, {free / GIB:.1f} GiB of disk free"
        if free < LITTLE_DISK:
            yield warn(f"{name} cache", what, "free some disk, or keep models elsewhere: --model-cache FOLDER")
        else:
            yield ok(f"{name} cache", what)
    temporary = tempfile.gettempdir()
    if not os.access(temporary, os.W_OK):
        yield fail("temporary", f"{temporary} cannot be written", "set TMPDIR to a folder that can be written")


def compiling(compiler: str) -> Iterator[Finding]:
    """A compiler that is there may still lack its headers or its linker."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "try.cpp")
        source.write_text('#include <cmath>\nextern "C" double half(double x) { return std::floor(x / 2); }\n')
        command = [compiler, "-std=c++17", "-shared", "-fPIC", str(source), "-o", str(source.with_suffix(".so"))]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=COMPILER_TIMEOUT)
            said = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0]
        except (OSError, subprocess.TimeoutExpired) as error:
            said = str(error)
    if said:
        remedy = "install g++ with the C++ headers (Debian: apt install g++), or name another by $CXX"
        yield warn("compiler", f"{compiler} makes no native kernels: {said}", remedy)
    else:
        yield ok("compiler", compiler)


def port(plugin: str, key: str, host: str, number: int) -> Finding:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
            tried.listen(1)
    except (OSError, UnicodeError) as error:
        busy = getattr(error, "errno", None) == errno.EADDRINUSE
        what = f"{number} on {host} is in use{_by_whom(number)}" if busy else f"{number} on {host} cannot be had: {error}"
        flag = f"--{plugin.replace('_', '-')}-{key.replace('_', '-')}"
        return fail(key.replace("_", " "), what, f"{flag} 0 to have a free one picked, or stop the program that has it")
    return ok(key.replace("_", " "), f"{number} on {host} is free")


def _by_whom(number: int) -> str:
    """As far as this user may know."""
    import psutil

    try:
        for each in psutil.net_connections("tcp"):
            if each.status == psutil.CONN_LISTEN and each.laddr[1:] == (number,) and each.pid:
                return f" by {psutil.Process(each.pid).name()}, process {each.pid}"
    except (psutil.Error, OSError):
        pass
    return ""


def framework_state(name: str, found: Mapping[str, Any], *, on_cuda: bool) -> Iterable[Finding]:
    if not found:
        what = f"its import did not end in {machine.IMPORT_TIMEOUT:g} s"
        yield warn(name, what, f"time it when the machine is idle: {sys.executable} -X importtime -c 'import {name}'")
        return
    if "error" in found:
        yield fail(name, f"cannot be imported: {found['error']}", f"pip install --force-reinstall {name}")
        return
    built = found.get("built_for_cuda")
    what = f"{found['version']}, {'for CUDA ' + built if built else 'for CPUs'}, imported in {found['seconds']} s"
    if on_cuda and not built:
        yield warn(name, f"{what}: it cannot use the GPU", f"pip install a {name} that is built for CUDA, or say --device cpu")
    elif on_cuda and not found.get("cuda"):
        yield fail(
            name, f"{what}: it finds no device it can use", "install the driver that its CUDA wants, or say --device cpu"
        )
    else:
        yield ok(name, what)
