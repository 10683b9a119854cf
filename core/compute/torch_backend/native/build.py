"""Compiles ``src/*.cpp`` into one library for this CPU, and keeps it in the user's cache.

The sources know neither torch nor Python: they take addresses and numbers. So compiling takes seconds, with any C++17 compiler.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent / "src"
COMPILERS = ("g++", "clang++", "c++")
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", "-pthread")
TIMEOUT = 120.0  # seconds; a file takes two or three


class NotBuiltError(Exception):
    """Why there is no library. The text is for people."""


def library(cache: Path | None = None) -> Path:
    """The library's file, compiled unless the cache has it. Of two processes one compiles, the other waits.

    :raises NotBuiltError: when there is no compiler, it fails, or nothing can be kept.
    """
    import platformdirs
    from filelock import FileLock

    compiler = find_compiler()
    flags = (*FLAGS, native_flag())
    folder = (cache or Path(platformdirs.user_cache_dir("dovetail", appauthor=False))) / "native"
    file = folder / f"{key(compiler, flags)}.so"
    if file.is_file():
        return file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "build.lock"):
            if not file.is_file():
                compile_into(file, compiler, flags)
    except OSError as error:
        raise NotBuiltError(f"cannot keep compiled kernels in {folder}: {(error.strerror or str(error)).lower()}") from error
    return file


def find_compiler() -> str:
    """$CXX, or the first of the usual ones."""
    named = os.environ.get("CXX")
    for name in (named,) if named else COMPILERS:
        found = shutil.which(name)
        if found:
            return found
    raise NotBuiltError(f"the compiler that $CXX names was not found: {named}" if named else "no C++ compiler was found")


def native_flag() -> str:
    return "-march=native" if platform.machine().lower() in ("x86_64", "amd64") else "-mcpu=native"


def key(compiler: str, flags: tuple[str, ...]) -> str:
    """Of everything the library hangs on: sources, compiler, flags, and what this CPU can do."""
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, check=False, timeout=TIMEOUT).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotBuiltError(f"the compiler {compiler} does not run: {error}") from error
    digest = hashlib.sha256()
    for part in (version, " ".join(flags).encode(), platform.machine().encode(), cpu_features()):
        digest.update(hashlib.sha256(part).digest())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + hashlib.sha256(source.read_bytes()).digest())
    return digest.hexdigest()[:32]


def cpu_features() -> bytes:
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode()
    return b"".join(line for line in dict.fromkeys(lines) if line.partition(b":")[0].strip() in (b"flags", b"Features"))


def compile_into(file: Path, compiler: str, flags: tuple[str, ...]) -> None:
    """All units at once, then linked under another name: whoever looks sees a whole library or none."""
    with tempfile.TemporaryDirectory(dir=file.parent) as temporary:
        objects = {source: Path(temporary, source.stem + ".o") for source in sorted(SOURCES.glob("*.cpp"))}
        running = [
            subprocess.Popen(
                [compiler, *flags, "-c", str(source), "-o", str(target)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
            )
            for source, target in objects.items()
        ]
        try:
            for process in running:
                _, said = process.communicate(timeout=TIMEOUT)
                _succeeded(compiler, process.returncode, said)
            linked = Path(temporary, file.name)
            command = [compiler, "-shared", "-pthread", *map(str, objects.values()), "-o", str(linked)]
            done = subprocess.run(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, check=False, timeout=TIMEOUT)
            _succeeded(compiler, done.returncode, done.stderr)
            os.replace(linked, file)
        except subprocess.TimeoutExpired as error:
            raise NotBuiltError(f"{compiler} had not compiled the kernels after {TIMEOUT:g} s") from error
        finally:
            for process in running:
                if process.poll() is None:
                    process.kill()
                process.communicate()


def _succeeded(compiler: str, code: int, said: bytes) -> None:
    if code:
        lines = said.decode(errors="replace").strip().splitlines()
        first = next((line for line in lines if "error" in line), lines[-1] if lines else f"exit code {code}")
        raise NotBuiltError(f"{compiler} cannot compile the kernels: {first.strip()}")
