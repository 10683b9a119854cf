"""The two files of a batch: requests, one JSON object a line, and what was answered, one line each, in any order.

Both are OpenAI's. A request has ``custom_id``, ``method``, ``url`` and ``body``; an answer ``id``, ``custom_id``, ``response``
(``status_code``, ``request_id``, ``body``) and ``error``: one of the two is null.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from core.errors import ExitCode, Problem, UserError
from core.suggest import did_you_mean

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
SHOWN = 20  # problems of one file that are told one by one
_ANSWER = b'{"id": "batch_req_'  # how each line of an answers' file begins that this program wrote


@dataclass(frozen=True)
class Asked:
    """Where a request stands in its file. Its body is read when its turn comes, so that a batch may be larger than memory."""

    line: int
    custom_id: str
    url: str
    start: int  # bytes
    length: int


class Requests:
    """The requests of a file, every one checked.

    :raises UserError: with the number of each line that is no request.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[Asked] = []
        problems: list[Problem] = []
        lines: dict[str, int] = {}
        start = 0
        try:
            with path.open("rb") as file:
                for number, raw in enumerate(file, start=1):
                    start, begin = start + len(raw), start
                    if not raw.strip():
                        continue
                    found = _read_request(raw)
                    if isinstance(found, str):
                        problems.append(Problem(found, f"{path}:{number}"))
                    elif found[0] in lines:
                        what = f"custom_id {found[0]!r} stands in line {lines[found[0]]} already"
                        problems.append(Problem(what, f"{path}:{number}", ("give each request a custom_id of its own",)))
                    else:
                        lines[found[0]] = number
                        self.asked.append(Asked(number, *found, begin, len(raw)))
        except PermissionError:
            raise
        except OSError as error:
            raise UserError.of(f"{path} cannot be read: {(error.strerror or str(error)).lower()}", "--input-file") from None
        if len(problems) > SHOWN:
            problems = [*problems[:SHOWN], Problem(f"and {len(problems) - SHOWN} more lines", str(path))]
        if problems:
            raise UserError(*problems)
        if not self.asked:
            raise UserError.of(f"{path} has no request", "--input-file", "give a file with one JSON object a line")

    def bodies(self, wanted: Collection[Asked]) -> Iterator[tuple[Asked, dict[str, Any]]]:
        with self.path.open("rb") as file:
            for asked in wanted:
                file.seek(asked.start)
                yield asked, json.loads(file.read(asked.length))["body"]


def _read_request(raw: bytes) -> tuple[str, str] | str:
    """(custom_id, url), or what is wrong."""
    try:
        request = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return f"the line is not JSON: {str(error)[:1].lower()}{str(error)[1:]}"
    if not isinstance(request, dict):
        return "the line is no JSON object"
    missing = [name for name in ("custom_id", "method", "url", "body") if name not in request]
    if missing:
        near = did_you_mean(missing[0], [name for name in request if name not in ("custom_id", "method", "url", "body")])
        return f"the request has no {' and no '.join(missing)}{near}"
    custom_id, url, body = request["custom_id"], request["url"], request["body"]
    if not isinstance(custom_id, str) or not custom_id:
        return f"custom_id must be a text, and not an empty one; it is {json.dumps(custom_id)[:40]}"
    if request["method"] != "POST":
        return f'method must be "POST"; it is {json.dumps(request["method"])[:40]}'
    if url not in URLS:
        return f"url must be one of {', '.join(URLS)}; it is {json.dumps(url)[:60]}"
    if not isinstance(body, dict):
        return "body must be a JSON object"
    if body.get("stream"):
        return "body asks for a stream, and a batch's answers are written whole: leave out stream"
    return custom_id, str(url)


def answer(custom_id: str, status: int, request_id: str, body: Any) -> dict[str, Any]:
    """What a server said, be it an answer or a refusal."""
    response = {"status_code": status, "request_id": request_id, "body": body}
    return {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": custom_id, "response": response, "error": None}


def failure(custom_id: str, code: str, message: str) -> dict[str, Any]:
    """That no server said anything."""
    error = {"code": code, "message": message}
    return {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": custom_id, "response": None, "error": error}


def succeeded(line: dict[str, Any]) -> bool:
    return line.get("error") is None and (line.get("response") or {}).get("status_code") == 200


def why_not(line: dict[str, Any]) -> str:
    """What an answer that is none says, on one line."""
    response = line.get("response") or {}
    body = response.get("body")
    said = line.get("error") or (body.get("error") if isinstance(body, dict) else None)
    message = said.get("message") if isinstance(said, dict) else None
    return " ".join(str(message or f"status {response.get('status_code')}").split())[:200]


class Answers:
    """The file of answers, open to be added to, and by nobody else. ``done``: the custom_ids that have one; ``failed``: of
    these, those whose answer is an error, and what it says.

    What a killed run left of its last line is cut off. ``repaired`` says so.

    :raises UserError: when the file is not this batch's, so that nothing of the user's is lost.
    """

    def __init__(self, path: Path, asked: Collection[str], *, retry_failed: bool = False) -> None:
        self.path = path
        self.repaired = False
        self.failed: dict[str, str] = {}
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except PermissionError:
            raise
        except OSError as error:
            raise _unwritable(path, error) from None
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError.of(
                    f"another run is writing to {path}", "--output-file", "wait for it, or name another file"
                ) from None
            kept, self.done, dropped = self._read(asked, retry_failed)
            if dropped:
                self._rewrite(kept)
        except BaseException:
            os.close(self._file)
            raise

    def _read(self, asked: Collection[str], retry_failed: bool) -> tuple[list[bytes], set[str], bool]:
        kept: list[bytes] = []
        done: set[str] = set()
        dropped = False
        with self.path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                whole = raw.endswith(b"\n")
                try:
                    line = json.loads(raw)
                    custom_id = line["custom_id"]
                    good = succeeded(line)
                except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
                    torn = not whole and (raw.startswith(_ANSWER) or _ANSWER.startswith(raw))
                    if not torn:
                        raise UserError.of(
                            f"{self.path} holds something else than a batch's answers, and nothing is overwritten",
                            f"{self.path}:{number}",
                            "name another file with --output-file",
                        ) from None
                    self.repaired = dropped = True
                    continue
                if custom_id not in asked:
                    raise UserError.of(
                        f"{self.path} answers {custom_id!r}, which this batch does not ask: it is another batch's",
                        f"{self.path}:{number}",
                        "name another file with --output-file",
                    )
                if not whole:
                    self.repaired = dropped = True
                if retry_failed and not good:
                    dropped = True
                    continue
                done.add(custom_id)
                if not good:
                    self.failed[custom_id] = why_not(line)
                kept.append(raw.rstrip(b"\n") + b"\n")
        return kept, done, dropped

    def _rewrite(self, kept: list[bytes]) -> None:
        """In a file beside it, which takes its name: whoever looks sees the old lines or the new ones."""
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
        try:
            file = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for line in kept:
                    _write(file, line)
                os.fsync(file)
                os.replace(beside, self.path)
            except BaseException:
                os.close(file)
                beside.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise _unwritable(self.path, error) from None
        os.close(self._file)
        self._file = file

    def add(self, line: dict[str, Any]) -> None:
        """:raises UserError: when it cannot be written; what was there before still is."""
        try:
            _write(self._file, json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        except OSError as error:
            raise _unwritable(self.path, error) from None
        self.done.add(line["custom_id"])
        if not succeeded(line):
            self.failed[line["custom_id"]] = why_not(line)

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            os.fsync(self._file)
        except OSError:
            pass  # a pipe, /dev/null
        finally:
            os.close(self._file)


def _write(file: int, line: bytes) -> None:
    while line:
        line = line[os.write(file, line) :]


def _unwritable(path: Path, error: OSError) -> UserError:
    why = (error.strerror or str(error)).lower()
    problem = Problem(
        f"{path} cannot be written: {why}", "--output-file", ("name a file that can be written, on a disk with space",)
    )
    return UserError(problem, exit_code=ExitCode.FAILED)
