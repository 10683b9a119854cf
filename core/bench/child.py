"""A contestant's process, as the benchmark that started it sees it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from time import perf_counter
from typing import Any

from core.errors import ExitCode, Problem, UserError


class Child:
    """A contestant in its own process. It computes only between ``ask`` and its answer."""

    def __init__(self, name: str, options: Mapping[str, Any], threads: int) -> None:
        self.name = name
        environment = dict(os.environ)
        if threads:
            environment["OMP_NUM_THREADS"] = str(threads)
        command = [sys.executable, "-m", "core.bench.contestant", name, json.dumps(dict(options))]
        began = perf_counter()
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        try:
            self.versions: dict[str, str] = self._answer()["versions"]
        except BaseException:
            self.close()
            raise
        self.start_seconds = perf_counter() - began

    def ask(self, **content: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(content) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # told, with the exit code, below
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            problem = Problem(
                f"the benchmark's {self.name} process ended with exit code {code}", "", ("read what it wrote above",)
            )
            raise UserError(problem, exit_code=ExitCode.FAILED)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
