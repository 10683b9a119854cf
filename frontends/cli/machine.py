"""What can be asked of this machine in a moment. Frameworks are imported in child processes with a time limit, never here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

DISTRIBUTION = "dovetail-serve"
IMPORT_TIMEOUT = 10.0  # seconds; on an idle machine it takes one or two
_ASK = """
import json, time
began = time.perf_counter()
import {name}
found = {{"version": {name}.__version__, "seconds": round(time.perf_counter() - began, 2)}}
{more}
print(json.dumps(found))
"""
_MORE = {
    "torch": "found |= {'built_for_cuda': torch.version.cuda, 'cuda': torch.cuda.is_available()}",
    "paddle": "found |= {'built_for_cuda': paddle.version.cuda() if paddle.is_compiled_with_cuda() else None, "
    "'cuda': paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0}",
}


class Framework:
    """An array framework, imported by a child. Start it early, ask it late."""

    def __init__(self, name: str, timeout: float = IMPORT_TIMEOUT) -> None:
        self.name = name
        self._end = time.monotonic() + timeout
        self.timeout = timeout
        code = _ASK.format(name=name, more=_MORE.get(name, ""))
        self._found: dict[str, Any] | None = None
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def found(self) -> dict[str, Any]:
        """ "version", "seconds", "cuda", "built_for_cuda"; or "error" alone."""
        if self._found is None:
            self._found = self._asked()
        return self._found

    def _asked(self) -> dict[str, Any]:
        try:
            out, err = self._child.communicate(timeout=max(0.1, self._end - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.close()
            return {}
        try:
            return dict(json.loads(out.strip().splitlines()[-1]))
        except (ValueError, IndexError, TypeError):
            said = err.strip().splitlines()
            return {"error": said[-1] if said else f"its import ended with exit code {self._child.returncode}"}

    def close(self) -> None:
        if self._child.poll() is None:
            self._child.kill()
            self._child.communicate()
            self._found = {}


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def requirements(extras: Sequence[str] = ()) -> list[tuple[str, str, str | None, bool]]:
    """(package, what is asked of it, the version here, whether that will do): what this program needs, with these extras."""
    from packaging.requirements import Requirement

    found = []
    for text in metadata.requires(DISTRIBUTION) or ():
        needed = Requirement(text)
        wanted = needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *extras))
        if wanted and needed.name != DISTRIBUTION:
            version = version_of(needed.name)
            good = version is not None and needed.specifier.contains(version, prereleases=True)
            found.append((needed.name, str(needed.specifier), version, good))
    return found


def python_range() -> str:
    return str(metadata.metadata(DISTRIBUTION)["Requires-Python"] or "")


def python_will_do() -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(python_range()).contains(".".join(map(str, sys.version_info[:3])))


def quota() -> float | None:
    """Processors' time that the container allows, in processors; None without a limit."""
    text = read("/sys/fs/cgroup/cpu.max").split()
    return int(text[0]) / int(text[1]) if len(text) == 2 and text[0].isdigit() and text[1].isdigit() else None


def huge_pages() -> str | None:
    """ "always", "madvise" or "never"; None where there is no such thing."""
    text = read("/sys/kernel/mm/transparent_hugepage/enabled")
    return text.partition("[")[2].partition("]")[0] or None


def nvidia_driver() -> str | None:
    """Its version, where it is loaded."""
    first = read("/proc/driver/nvidia/version").splitlines()[:1]
    return next((word for line in first for word in line.split() if word[:1].isdigit() and "." in word), None)


def caches(settings: Mapping[str, Any]) -> dict[str, Path]:
    """The folders that fetched models and compiled kernels are kept in, by what keeps them."""
    import platformdirs

    own = Path(os.path.expanduser(settings["model_cache"])).absolute() if settings.get("model_cache") else None
    home = Path(
        os.environ.get("HF_HOME")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path(os.path.expanduser("~")) / ".cache") / "huggingface"
    )
    return {
        "dovetail": Path(platformdirs.user_cache_dir("dovetail", appauthor=False)),
        "models": own or Path(os.path.expanduser(os.environ.get("HF_HUB_CACHE") or home / "hub")),
    }


def size_of(folder: Path) -> int:
    """Bytes under a folder; links are not followed."""
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except OSError:
                continue
    return total


def read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
